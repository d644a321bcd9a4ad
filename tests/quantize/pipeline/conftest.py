"""A store with a tiny base in several shards, with a tokenizer, and adapters for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from adapters.catalog import Catalog
from adapters.jobs.orders import MergeOrder
from adapters.serving.document import ServingChoice
from quantize.jobs.context import JobContext
from quantize.merging.merge import Watcher
from quantize.pipeline.merge_job import run_merge
from quantize.pipeline.models import MergeResult
from tests.adapters.intake.artifact_builders import adapter_parts, write_parts
from tests.quantize.tiny import write_model

# Of the usual size of the change: it stays a model.
_SIZE = 0.05


@dataclass(frozen=True)
class Works:
    """The store, and jobs on it that run in this process."""

    catalog: Catalog
    root: Path

    def context(self, job: str, watch: Watcher | None = None) -> JobContext:
        """As quantize/job.py makes it."""
        directory = self.catalog.layout.job(job)
        (directory / "work").mkdir(parents=True, exist_ok=True)
        return JobContext(job, self.catalog, directory, "tester", watch or Watcher())

    def merge(self, job: str, order: MergeOrder, watch: Watcher | None = None) -> MergeResult:
        return run_merge(self.context(job, watch), order)


def in_shards(model: Path, count: int) -> None:
    """Lays the weights out in `count` files, as large models are."""
    whole = model / "model.safetensors"
    weights = load_file(whole)
    names, where = sorted(weights), dict[str, str]()
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        part = {name: weights[name] for name in names[number::count]}
        save_file(part, model / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    whole.unlink()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers in four shards."""
    model = write_model(tmp_path_factory.mktemp("pipeline") / "base", "llama")
    in_shards(model, 4)
    return model


@pytest.fixture
def works(tiny_base: Path, tmp_path: Path) -> Iterator[Works]:
    """`bot` on the base `tiny`; `brief` is the same with a system prompt."""
    root = tmp_path / "works"
    with Catalog.init(root / "store") as catalog:
        catalog.base_add("tiny", tiny_base)
        tensors, config = adapter_parts(catalog.base_descriptor("tiny"))
        small = {name: value * _SIZE for name, value in tensors.items()}
        write_parts(root / "adapter", small, config)
        catalog.register(str(root / "adapter"), name="bot", base="tiny")
        catalog.register(
            str(root / "adapter"),
            name="brief",
            base="tiny",
            serving=ServingChoice(system_prompt="w4 w5"),
        )
        yield Works(catalog, root)
