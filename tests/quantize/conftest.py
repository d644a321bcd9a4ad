"""A store with tiny random bases, real transformers models on disk, for a session's merges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from adapters.catalog import Catalog
from adapters.jobs.orders import Dtype
from quantize.merging.merge import merge
from quantize.merging.models import Merged
from tests.adapters.intake.conftest import MODELS
from tests.adapters.intake.mixtures import write_mixture
from tests.quantize.forks import Forks, forking


@dataclass(frozen=True)
class Shop:
    """A catalog with registered bases by name, and the directories they lie in."""

    catalog: Catalog
    root: Path

    def base(self, name: str) -> Path:
        return self.root / name

    def register(self, artifact: Path, name: str, base: str) -> None:
        self.catalog.register(str(artifact), name=name, base=base, tag=None)

    def merged(self, artifact: Path, base: str, out: Path, *, dtype: Dtype | None = None) -> Merged:
        """Registers the artifact under a name of its own and merges it."""
        name = f"a{abs(hash(str(artifact))):x}"
        self.register(artifact, name, base)
        return merge(self.catalog, name, out, dtype=dtype)


def _with_noise(model: PreTrainedModel) -> PreTrainedModel:
    """Fresh biases are zero and fresh norms one, which hides a mistake."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += torch.randn_like(parameter) * 0.3
    return model


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """MODELS; `shards`, a Llama in many; `bare`, a GPT-2 saved without its head; `moe`, `fused`."""
    root = tmp_path_factory.mktemp("shop")
    for name, build in MODELS.items():
        torch.manual_seed(3)
        _with_noise(build()).save_pretrained(root / name)
    torch.manual_seed(3)
    _with_noise(MODELS["llama-tied"]()).save_pretrained(root / "shards", max_shard_size="12KB")
    model = _with_noise(MODELS["gpt2"]())
    model.transformer.save_pretrained(root / "bare")
    # Its config names the class it was saved from.
    config = (root / "bare" / "config.json").read_text()
    (root / "bare" / "config.json").write_text(config.replace("GPT2Model", "GPT2LMHeadModel"))
    write_mixture(root / "moe", "qwen3-moe")
    write_mixture(root / "fused", "qwen3-moe", fused=True)
    with Catalog.init(root / "store") as catalog:
        for name in (*MODELS, "shards", "bare", "moe", "fused"):
            catalog.base_add(name, root / name)
        yield Shop(catalog, root)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Processes that need not import torch."""
    with forking() as forks:
        yield forks
