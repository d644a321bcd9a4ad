"""What a quantizer is told, and what it made: the documents of one run."""

from __future__ import annotations

from adapters.frozen import Frozen


class Recipe(Frozen):
    """How the weights are rounded, decided before any work: all that the result depends on
    besides the model, the texts and the tool's version."""

    quantizer: str
    # quant_method of the checkpoint.
    method: str
    bits: int
    # Inputs that share a scale; -1 is a whole row.
    group_size: int
    symmetric: bool
    # GPTQ's reordering by activation; vLLM's CPU kernel has none.
    desc_act: bool = False
    # Steps of learning, where rounding is learnt.
    iterations: int | None = None
    # How many decoder layers, and linear modules in them, are rounded.
    layers: int
    modules: int
    # What was chosen for the user, and why.
    notes: tuple[str, ...] = ()


class Quantized(Frozen):
    """What a run cost, and what it was made with."""

    tools: dict[str, str]
    seconds: float
    # Bytes, of the tool's process.
    peak_rss: int
    notes: tuple[str, ...] = ()


class CalibrationUsed(Frozen):
    """Which texts were looked at; the same document gives the same token ids."""

    # The file's name, or `default`.
    source: str
    # Of the whole file.
    sha256: str
    samples: int
    tokens: int
    seed: int
