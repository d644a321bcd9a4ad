"""The stages that measure: the reference, what is made of it, and how they compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import RootModel

from adapters.jobs.orders import EvaluateOptions
from adapters.store.durable import fsync_directory, fsync_file
from quantize.formats.comparing import LayerError, layer_errors
from quantize.merging.merge import Watcher
from quantize.pipeline.ledger import Ledger
from quantize.pipeline.texts import EvaluationTexts, Ids, own_answers, sample_texts
from quantize.pipeline.workshop import Workshop
from quantize.quality.measuring import Measurement, measure
from quantize.quality.regression import (
    ANSWER_TOKENS,
    RegressionScore,
    regression_items,
    score,
)
from quantize.quality.report import GENERAL_SET, TASK_SET, ReportedModel, Stage

_LayerErrors = RootModel[tuple[LayerError, ...]]
_QUESTION_TOKENS = 64


class Meter:
    """Measures models on the same texts, each once: what was measured is noted.

    `side` is a directory with the tokenizer; distributions and the like go under `work`.
    """

    def __init__(
        self,
        texts: EvaluationTexts,
        options: EvaluateOptions,
        *,
        side: Path,
        work: Path,
        ledger: Ledger,
        watch: Watcher,
        log: Path,
    ) -> None:
        self._texts = texts
        self._options = options
        self._side = side
        self._work = work
        self._ledger = ledger
        self._watch = watch
        self._log = log
        self._sets: dict[str, Ids] | None = None

    def reference(self, model: Path, dtype: str) -> Measurement:
        """Measures what the others are compared with; has to come first."""
        texts = self._texts
        if texts.task is not None:
            self._sets = {GENERAL_SET: texts.general, TASK_SET: texts.task}
            return self._measured("reference", model, dtype, self._sets, texts.prompts)
        # Its own answers are the task: they have to be there before its figures on them.
        first = self._measured("reference-answers", model, dtype, {}, texts.prompts)
        answers = [answer.text for answer in first.answers[: len(texts.questions)]]
        task = own_answers(self._side, texts, answers, self._options)
        self._sets = {GENERAL_SET: texts.general, **({TASK_SET: task} if task else {})}
        second = self._measured("reference", model, dtype, self._sets, (), speed=False)
        return first.model_copy(
            update={
                "sets": second.sets,
                "faults": (*first.faults, *second.faults),
                "seconds": first.seconds + second.seconds,
                "peak_rss": max(first.peak_rss, second.peak_rss),
            }
        )

    def candidate(self, name: str, model: Path, dtype: str) -> Measurement:
        """Measures a model against the reference; `name` is that of its note."""
        assert self._sets is not None, "the reference comes first"
        return self._measured(
            name, model, dtype, self._sets, self._texts.prompts, reference="reference"
        )

    def layer_errors(self, name: str, model: Path, origin: Path) -> tuple[LayerError, ...]:
        """How far the weights of `model` are from those of `origin`."""
        known = self._ledger.read(f"layers-{name}", _LayerErrors)
        if known is None:
            self._watch.step("comparing the weights layer by layer")
            known = _LayerErrors(layer_errors(model, origin))
            self._ledger.note(f"layers-{name}", known)
        return known.root

    def reported(
        self,
        name: str,
        measurement: Measurement,
        size: int,
        *,
        quantization: str | None = None,
        digest: str | None = None,
        layers: tuple[LayerError, ...] = (),
        stages: tuple[Stage, ...] = (),
    ) -> ReportedModel:
        """A measured model as the report has it."""
        questions = len(self._texts.questions)
        cost = Stage(name="measure", seconds=measurement.seconds, peak_rss=measurement.peak_rss)
        return ReportedModel(
            name=name,
            quantization=quantization,
            digest=digest,
            size=size,
            measurement=measurement.model_copy(update={"answers": measurement.answers[:questions]}),
            layer_errors=layers,
            regression=_regression(measurement, questions),
            stages=(*stages, cost),
        )

    def _measured(
        self,
        name: str,
        model: Path,
        dtype: str,
        sets: Mapping[str, Ids],
        prompts: Sequence[Sequence[int]],
        *,
        speed: bool = True,
        reference: str | None = None,
    ) -> Measurement:
        known = self._ledger.read(f"measure-{name}", Measurement)
        if known is None:
            work = self._work / name
            self._watch.step(f"measuring {name.replace('-', ' ')}")
            known = measure(
                model,
                dtype=dtype,
                sets=sets,
                prompts=prompts,
                work=work,
                reference=None if reference is None else self._work / reference,
                watch=self._watch,
                log=self._log,
                answer_tokens=self._answer_tokens(prompts),
                **({} if speed else {"speed_tokens": 0}),
            )
            for path in work.iterdir():
                fsync_file(path)
            fsync_directory(work)
            self._ledger.note(f"measure-{name}", known)
        return known

    def _answer_tokens(self, prompts: Sequence[Sequence[int]]) -> Sequence[int]:
        """Questions are there to be read; of the regression set's only the first words count."""
        questions = len(self._texts.questions)
        return [_QUESTION_TOKENS if at < questions else ANSWER_TOKENS for at in range(len(prompts))]


def _regression(measurement: Measurement, questions: int) -> RegressionScore | None:
    answers = [answer.text for answer in measurement.answers[questions:]]
    return score(answers) if len(answers) == len(regression_items()) else None


def loads_and_answers(shop: Workshop) -> str | None:
    """Whether vLLM loads the model and it answers; if not, why it must not be published.

    No quality is measured. Raises EngineStartFailed where vLLM refuses the model.
    """
    plan = shop.plan
    rows, prompts = sample_texts(shop.side, plan.source.serving.system_prompt)
    known = shop.ledger.read("answers", Measurement)
    if known is None:
        shop.watch.step("loading the result with vLLM")
        known = measure(
            shop.model,
            dtype="auto",
            sets={GENERAL_SET: rows},
            prompts=prompts,
            work=shop.measured / "answers",
            reference=None,
            watch=shop.watch,
            log=shop.log,
            answer_tokens=16,
            speed_tokens=0,
        )
        shop.ledger.note("answers", known)
    if any(found.non_finite for found in known.sets.values()):
        return f"rejected: {known.faults[0]}"
    if not any(answer.text.strip() for answer in known.answers):
        return "rejected: vLLM loads the model, and it answers nothing"
    return None
