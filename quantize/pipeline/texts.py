"""The texts that a model is measured on: held-out ones, questions to answer, its own answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.errors import UsageError
from adapters.jobs.orders import EvaluateOptions
from quantize.quality.data import GENERAL, QUESTIONS
from quantize.quality.regression import regression_items
from quantize.quality.report import GENERAL_SET, TASK_SET, TextSet
from quantize.texts import Text, prompt_ids, read_texts, token_ids

Ids = Sequence[Sequence[int]]
# What a model is asked for that is only loaded to see whether it can be.
SAMPLE_TOKENS = 256
_SAMPLE_QUESTIONS = 3
# At most so many tokens of one text: what lies far back tells nothing new and costs memory.
_TEXT_TOKENS = 512


@dataclass(frozen=True, slots=True)
class EvaluationTexts:
    """As token ids of one tokenizer. `task` None: the reference's answers will be it.

    `prompts` are the questions', then those of the regression set.
    """

    general: Ids
    task: Ids | None
    prompts: Ids
    questions: tuple[str, ...]
    sets: tuple[TextSet, ...]
    # The reference's own answers are turned into texts with it.
    chats: tuple[Text, ...]


def evaluation_texts(
    side: Path, options: EvaluateOptions, system_prompt: str | None
) -> EvaluationTexts:
    """What `options` ask for, by the tokenizer and chat template in the directory `side`.

    The adapter's own system prompt stands before every question. Raises UsageError and BaseError.
    """
    general = token_ids(side, read_texts(GENERAL), _TEXT_TOKENS, most=options.tokens)
    task = None
    if options.task is not None:
        rows = token_ids(side, read_texts(Path(options.task)), _TEXT_TOKENS, most=options.tokens)
        task = _predictable(rows, options.task)
    chats = tuple(_asked(text, system_prompt) for text in read_texts(QUESTIONS))
    items = tuple(_question(item.prompt, system_prompt) for item in regression_items())
    return EvaluationTexts(
        general=[row for row in general if len(row) > 1],
        task=task,
        prompts=prompt_ids(side, (*chats, *items)),
        questions=tuple(chat.messages[-1]["content"] for chat in chats),
        sets=(
            TextSet(name=GENERAL_SET, source="held-out texts of general content"),
            _task_set(options.task),
        ),
        chats=chats,
    )


def sample_texts(side: Path, system_prompt: str | None) -> tuple[Ids, Ids]:
    """A few texts and prompts, to see whether a model is sound at all."""
    rows = token_ids(side, read_texts(GENERAL), _TEXT_TOKENS, most=SAMPLE_TOKENS)
    chats = [_asked(text, system_prompt) for text in read_texts(QUESTIONS)[:_SAMPLE_QUESTIONS]]
    return [row for row in rows if len(row) > 1], prompt_ids(side, chats)


def own_answers(
    side: Path, texts: EvaluationTexts, answers: Sequence[str], options: EvaluateOptions
) -> Ids:
    """The reference's answers to the questions, each after its question, as token ids."""
    told = [
        Text(messages=(*chat.messages, {"role": "assistant", "content": answer}))
        for chat, answer in zip(texts.chats, answers, strict=False)
    ]
    rows = token_ids(side, told, _TEXT_TOKENS, most=options.tokens)
    return [row for row in rows if len(row) > 1]


def _asked(text: Text, system_prompt: str | None) -> Text:
    return _question(text.messages[-1]["content"] if text.messages else text.text, system_prompt)


def _question(content: str, system_prompt: str | None) -> Text:
    system = () if system_prompt is None else ({"role": "system", "content": system_prompt},)
    return Text(messages=(*system, {"role": "user", "content": content}))


def _predictable(rows: Ids, path: str) -> Ids:
    """A model predicts from the second token on."""
    kept = [row for row in rows if len(row) > 1]
    if not kept:
        raise UsageError(f"{path} holds no text of two tokens or more")
    return kept


def _task_set(path: str | None) -> TextSet:
    if path is None:
        return TextSet(name=TASK_SET, source="the reference's own answers to the questions below")
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return TextSet(name=TASK_SET, source=Path(path).name, sha256=digest)
