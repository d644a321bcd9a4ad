"""All that can be refused before any work is done, and the plan of the work."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

import adapters
from adapters.errors import AlreadyExists, UsageError
from adapters.jobs.orders import MergeOrder
from adapters.references import check_name, check_tag
from adapters.registry.registering import check_names
from adapters.store.durable import store_io
from quantize.jobs.context import JobContext
from quantize.merging.base_weights import Asked
from quantize.merging.layout import Shard, planned_shards
from quantize.merging.side_files import side_files
from quantize.merging.source import MergeSource, open_source
from quantize.merging.workspace import check_out
from quantize.pipeline.texts import EvaluationTexts, evaluation_texts
from quantize.quantizers.calibration import CalibrationSet, calibration_set
from quantize.quantizers.checks import check
from quantize.quantizers.recipe import Recipe
from quantize.quantizers.table import quantizer_of

# What the files of the config's and the tokenizer's are put down in, to ask for token ids.
SIDE = "side"
# Any of them makes a tokenizer.
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a merge job will do, with everything that it was possible to check."""

    order: MergeOrder
    source: MergeSource
    # The adapter that the model becomes a version of; None: it is not registered.
    name: str | None
    out: Path | None
    # The merged model in fp32, and as it is published where no quantizer is asked for.
    whole: tuple[Shard, ...]
    final: tuple[Shard, ...]
    # Everything beside the weights: name -> content.
    beside: Mapping[str, bytes]
    recipe: Recipe | None
    calibration: CalibrationSet | None
    # None: no quality is measured.
    texts: EvaluationTexts | None

    @property
    def label(self) -> str:
        """The merged version, for people."""
        return f"{self.source.version.adapter}:{self.source.version.label}"

    @property
    def dtype(self) -> str:
        """Of the published model's unquantized parameters."""
        if self.recipe is not None:
            return "bfloat16"
        return self.order.dtype or self.source.base.dtype

    @property
    def needs_whole(self) -> bool:
        """Is the merged model in fp32 needed besides the published one?"""
        return self.recipe is not None or self.texts is not None

    @property
    def compares_weights(self) -> bool:
        """Is a merge into the base's other weights measured, too?"""
        return self.order.compare_base_weights and self.texts is not None

    @property
    def parameters(self) -> int:
        """Of the merged model."""
        return sum(torch.Size(slot.shape).numel() for shard in self.whole for slot in shard.slots)


def checked(context: JobContext, order: MergeOrder) -> Plan:
    """Check the order against the store, the base, the quantizer, the texts; no tensor is read.

    Raises AdapterctlError subclasses. Leaves the small files of the model in work/side.
    """
    catalog = context.catalog
    source = open_source(catalog, order.reference, asked(order))
    name = _name(context, order, source)
    out = None if order.out is None else Path(order.out)
    if order.requantize != "none" and order.dtype not in (None, "bfloat16"):
        raise UsageError(
            "a quantized model keeps what is not quantized in bfloat16: leave --dtype out"
        )
    places = source.weights.places
    whole = planned_shards(source.files, source.base, source.plan, "float32", places)
    final = planned_shards(source.files, source.base, source.plan, order.dtype, places)
    beside = side_files(source, final, order.dtype)
    recipe = _recipe(order, source, whole)
    side = _put_down(context.work / SIDE, beside)
    if (recipe is not None or order.evaluate is not None) and not set(beside) & set(_TOKENIZERS):
        raise UsageError(
            f"the base {source.version.base} has no tokenizer in {source.files.root}, without "
            "which it can be neither calibrated nor measured: put its files there"
        )
    calibration = None
    if recipe is not None and quantizer_of(recipe.quantizer).calibrated:
        calibration = calibration_set(side, order.quantize.calibration)
    texts = None
    if order.evaluate is not None:
        texts = evaluation_texts(side, order.evaluate, source.serving.system_prompt)
    return Plan(order, source, name, out, whole, final, beside, recipe, calibration, texts)


def asked(order: MergeOrder) -> Asked:
    """Which of the base's weights the adapter is added to."""
    checkpoint = None if order.nf4_checkpoint is None else Path(order.nf4_checkpoint)
    return Asked(order.base_weights, checkpoint, order.compare_base_weights)


def key_of(plan: Plan) -> str:
    """All that a stage's result depends on; work of another key is not gone on with."""
    version = plan.source.version
    total = hashlib.sha256()
    for shard in plan.whole:
        total.update(shard.header)
    for name, content in plan.beside.items():
        total.update(f"{name} {len(content)}\n".encode() + content)
    if plan.calibration is not None:
        total.update(str(plan.calibration.samples).encode())
    if plan.texts is not None:
        total.update(str(plan.texts).encode())
    parts = (
        adapters.__version__,
        torch.__version__,
        version.digest,
        version.base_digest,
        plan.source.weights.used.model_dump_json(),
        plan.order.model_dump_json(),
        total.hexdigest(),
    )
    return "\n".join(parts)


def check_published(plan: Plan) -> None:
    """Raises AlreadyExists or UsageError unless the directory of the order can be taken."""
    if plan.out is not None:
        check_out(plan.out)


def _name(context: JobContext, order: MergeOrder, source: MergeSource) -> str | None:
    name = order.name
    if name is None and order.out is None:
        kind = "merged" if order.requantize == "none" else order.requantize
        name = f"{source.version.adapter}-{kind}"
    if order.tag is not None:
        check_tag(order.tag)
        if name is None:
            raise UsageError(
                "--tag names a version, and with --out alone none is registered: give --name too"
            )
    if name is not None:
        check_name(name)
        try:
            check_names(context.catalog.layout, name, source.version.base)
        except AlreadyExists:
            raise AlreadyExists(
                f"'{name}' is a base: give the merged model another --name"
            ) from None
    return name


def _recipe(order: MergeOrder, source: MergeSource, whole: tuple[Shard, ...]) -> Recipe | None:
    if order.requantize == "none":
        return None
    config = {**source.files.config, **source.plan.base_config}
    shapes = {slot.name: slot.shape for shard in whole for slot in shard.slots}
    return check(config, shapes, order.quantize, quantizer_of(order.requantize))


def _put_down(folder: Path, beside: Mapping[str, bytes]) -> Path:
    with store_io(folder):
        for name, content in beside.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return folder
