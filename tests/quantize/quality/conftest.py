"""Two tiny Llamas with a tokenizer, measured once by vLLM: a reference and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from quantize.merging.merge import Watcher
from quantize.quality.measuring import Measurement, measure

# Not a multiple of what vLLM pads a vocabulary to.
VOCABULARY = 90
# The candidate's embedding of it is NaN.
DAMAGED = VOCABULARY - 1
ANSWER_TOKENS = 12


def build(seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=VOCABULARY,
            max_position_embeddings=1024,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    # Fresh models predict next to nothing: every token alike.
    for parameter in model.parameters():
        parameter.data *= 6 if parameter.ndim == 2 else 1
    model.lm_head.weight.data *= 3
    # Ends no answer early, and never leads into the damaged embedding.
    model.lm_head.weight.data[[1, DAMAGED]] *= 0.01
    return model.eval()


def save(model: PreTrainedModel, directory: Path) -> Path:
    model.save_pretrained(directory)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w2"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="w0", eos_token="w1", unk_token="w2"
    ).save_pretrained(directory)
    return directory


@dataclass
class Heard:
    """What a watcher was told."""

    steps: list[str] = field(default_factory=list)
    progress: list[tuple[int, int]] = field(default_factory=list)

    def watcher(self) -> Watcher:
        return Watcher(
            step=self.steps.append,
            progress=lambda done, total: self.progress.append((done, total)),
        )


@dataclass(frozen=True)
class Pair:
    """A reference and a candidate that is a little off, with what vLLM found of both."""

    models: tuple[PreTrainedModel, PreTrainedModel]
    measured: tuple[Measurement, Measurement]
    directories: tuple[Path, Path]
    work: tuple[Path, Path]
    sets: Mapping[str, Sequence[Sequence[int]]]
    prompts: Sequence[Sequence[int]]
    heard: Heard


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Measured in fp32. The set `long` is more than one step and than the KV cache can take."""
    root = tmp_path_factory.mktemp("probe")
    drawn = torch.Generator().manual_seed(5)

    def text(length: int) -> list[int]:
        return torch.randint(3, DAMAGED, (length,), generator=drawn).tolist()

    sets = {
        "mixed": [text(length) for length in (2, 40, 7, 129, 3, 64, 128, 127, 33, 5, 90)],
        "long": [text(length) for length in (700, 650, 701, 699, 513, 1024, 800, 768, 640)],
        "damaged": [text(9), [*text(5), DAMAGED, *text(6)], text(4)],
    }
    prompts = [text(length) for length in (3, 20, 1, 8, 9, 30, 2, 5, 11, 4)]
    original, other = build(7), build(7)
    noise = torch.randn(other.lm_head.weight.shape, generator=drawn)
    other.lm_head.weight.data += 2e-3 * noise
    other.model.embed_tokens.weight.data[DAMAGED] = torch.nan
    directories = save(original, root / "reference"), save(other, root / "candidate")
    work = root / "work-reference", root / "work-candidate"
    heard = Heard()
    measured = [
        measure(
            directory,
            dtype="float32",
            sets=sets,
            prompts=prompts,
            work=place,
            reference=reference,
            watch=heard.watcher(),
            log=root / "probe.log",
            answer_tokens=ANSWER_TOKENS,
            speed_tokens=8,
        )
        for directory, place, reference in zip(directories, work, (None, work[0]), strict=True)
    ]
    return Pair(
        models=(original, other),
        measured=(measured[0], measured[1]),
        directories=directories,
        work=work,
        sets=sets,
        prompts=prompts,
        heard=heard,
    )
