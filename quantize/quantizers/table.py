"""The quantizers, one row each. What a row allows is what vLLM 0.32 serves on CPU and GPU.

The limits are those of vllm/model_executor: layers/quantization/auto_gptq.py (symmetric only,
MARLIN_SUPPORTED_GROUP_SIZES), auto_awq.py (4 bits; without zero points the CPU kernel would read
the values wrong), kernels/linear/mixed_precision/cpu.py (4 bits, inputs and outputs in multiples
of 32); for int8, kernels/linear/scaled_mm: cpu.py takes any size, the CUDA kernel multiples of 16.
"""

from __future__ import annotations

from dataclasses import dataclass

from adapters.errors import UsageError


@dataclass(frozen=True, slots=True)
class Quantizer:
    """How weights are rounded, by which tool, and what can be chosen about it."""

    name: str
    title: str
    # The row of quantize/environments/table.py that it runs in, and its file in drivers/.
    environment: str
    driver: str
    # As in the checkpoint's quantization_config.
    method: str
    bits: int
    # What can be chosen; the first that fits a model is the default. -1 is a whole row.
    group_sizes: tuple[int, ...]
    # The first is the default.
    symmetric: tuple[bool, ...]
    # What the sizes of inputs and outputs must be multiples of.
    inputs: int
    outputs: int
    # model_type of config.json: dense decoders that the tool rounds right and vLLM serves.
    model_types: tuple[str, ...]
    # Does it look at texts?
    calibrated: bool
    method_note: str
    # The checkpoint's where it is symmetric, if that is another.
    symmetric_method: str | None = None
    # Steps of learning, where rounding is learnt.
    iterations: int | None = None


# Norm, attention, norm, MLP: what gptqmodel's AWQ takes every Llama-like model for. It moves scales
# into the norm before, so it ruins models whose norms stand elsewhere (Gemma 2, OLMo 2).
_PRE_NORM = ("gemma", "granite", "llama", "mistral", "qwen2", "qwen3", "seed_oss", "smollm3")

QUANTIZERS: tuple[Quantizer, ...] = (
    Quantizer(
        name="awq",
        title="AWQ, 4 bits",
        environment="gptqmodel",
        driver="gptqmodel_driver.py",
        method="awq",
        bits=4,
        group_sizes=(128, 64, 32),
        symmetric=(False,),
        inputs=32,
        # gptqmodel's search for what to clip goes by so many.
        outputs=64,
        model_types=_PRE_NORM,
        calibrated=True,
        method_note="scales the inputs that matter most before it rounds; the better one at 4 bits",
    ),
    Quantizer(
        name="gptq",
        title="GPTQ, 4 bits",
        environment="gptqmodel",
        driver="gptqmodel_driver.py",
        method="gptq",
        bits=4,
        group_sizes=(128, 64, 32, -1),
        symmetric=(True,),
        inputs=32,
        outputs=32,
        # It changes nothing but the linear modules.
        # Gemma 3 it cannot run (7.6.0: "missing … 'layer_type'").
        model_types=(*_PRE_NORM, "gemma2", "olmo2"),
        calibrated=True,
        method_note="rounds column by column and corrects the rest for each error; the faster one",
    ),
    Quantizer(
        name="w8a8",
        title="W8A8, int8",
        environment="llmcompressor",
        driver="llmcompressor_driver.py",
        method="compressed-tensors",
        bits=8,
        # A scale for each output, and one for each token that comes in.
        group_sizes=(-1,),
        symmetric=(True,),
        inputs=16,
        outputs=16,
        model_types=_PRE_NORM,
        calibrated=True,
        method_note="computes in int8: nearly lossless, half the size, and faster than 16 bits",
    ),
    Quantizer(
        name="autoround",
        title="AutoRound, 4 bits",
        environment="autoround",
        driver="autoround_driver.py",
        method="awq",
        bits=4,
        group_sizes=(128, 64, 32),
        symmetric=(False, True),
        inputs=32,
        outputs=32,
        model_types=_PRE_NORM,
        calibrated=True,
        method_note="learns where to round to; written as AWQ, or as GPTQ if it is symmetric",
        symmetric_method="gptq",
        # The tool's own default is 200: four times as long for a little more.
        iterations=50,
    ),
)


def quantizer_of(name: str) -> Quantizer:
    """The row called `name`. Raises UsageError."""
    for row in QUANTIZERS:
        if row.name == name:
            return row
    known = ", ".join(row.name for row in QUANTIZERS)
    raise UsageError(f"there is no quantizer '{name}': there are {known}")
