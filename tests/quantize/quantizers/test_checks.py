"""Options and sizes are checked against the model and against vLLM before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import UsageError
from adapters.jobs.orders import QuantizeOptions
from quantize.environments.table import environment_of
from quantize.quantizers import drivers
from quantize.quantizers.checks import check
from quantize.quantizers.layouts import layout_of, quantization_config
from quantize.quantizers.recipe import Recipe
from quantize.quantizers.table import QUANTIZERS, Quantizer, quantizer_of

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
AUTO = QuantizeOptions()


def shapes(
    hidden: int = 256, inner: int = 512, keys: int = 64, layers: int = 2
) -> dict[str, tuple[int, ...]]:
    """A Llama's parameters."""
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (100, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (100, hidden),
    }
    for layer in range(layers):
        stem = f"model.layers.{layer}"
        found |= {
            f"{stem}.input_layernorm.weight": (hidden,),
            f"{stem}.self_attn.q_proj.weight": (hidden, hidden),
            f"{stem}.self_attn.q_proj.bias": (hidden,),
            f"{stem}.self_attn.k_proj.weight": (keys, hidden),
            f"{stem}.self_attn.v_proj.weight": (keys, hidden),
            f"{stem}.self_attn.o_proj.weight": (hidden, hidden),
            f"{stem}.mlp.gate_proj.weight": (inner, hidden),
            f"{stem}.mlp.up_proj.weight": (inner, hidden),
            f"{stem}.mlp.down_proj.weight": (hidden, inner),
        }
    return found


def recipe_of(
    name: str, tensors: dict[str, tuple[int, ...]], config: dict[str, Any] = LLAMA, **options: Any
) -> Recipe:
    return check(config, tensors, QuantizeOptions(**options), quantizer_of(name))


def refusal(
    name: str, tensors: dict[str, tuple[int, ...]], config: dict[str, Any] = LLAMA, **options: Any
) -> str:
    with pytest.raises(UsageError) as refused:
        recipe_of(name, tensors, config, **options)
    assert "\n" not in refused.value.message
    return refused.value.message


@pytest.mark.parametrize("name", ["awq", "gptq"])
def test_the_default_group_is_the_largest_that_fits(name: str) -> None:
    assert recipe_of(name, shapes()).group_size == 128
    assert recipe_of(name, shapes()).notes == ()
    smollm2 = recipe_of(name, shapes(hidden=576, inner=1536, keys=192))
    assert smollm2.group_size == 64
    assert smollm2.notes == (
        "groups of 64: the 576 inputs of 'model.layers.0.self_attn.q_proj' are not divisible by "
        "128",
    )
    assert recipe_of(name, shapes(inner=576 + 32 * 2)).group_size == 128
    assert (smollm2.layers, smollm2.modules) == (2, 14)


def test_what_does_not_fit_says_what_would() -> None:
    smollm2 = shapes(hidden=576, inner=1536, keys=192)
    assert refusal("awq", smollm2, group_size=128) == (
        "the 576 inputs of 'model.layers.0.self_attn.q_proj' are not divisible by 128: give "
        "--group-size 64 or 32"
    )
    assert refusal("gptq", smollm2, group_size=128).endswith("give --group-size 64, 32 or -1")
    assert refusal("gptq", smollm2, group_size=48).startswith(
        "vLLM serves gptq in groups of 128, 64, 32 or -1, not 48"
    )
    assert recipe_of("gptq", smollm2, group_size=-1).group_size == -1
    assert "not -1" in refusal("awq", smollm2, group_size=-1)
    assert "not 0" in refusal("awq", smollm2, group_size=0)


@pytest.mark.parametrize("name", ["awq", "gptq"])
@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"hidden": 80}, "q_proj' has 80 inputs"),
        ({"inner": 100}, "gate_proj' has 100 outputs"),
        ({"keys": 16}, "k_proj' has 16 outputs, and"),
    ],
)
def test_sizes_that_the_kernels_do_not_take(name: str, sizes: dict[str, int], said: str) -> None:
    message = refusal(name, shapes(**sizes))
    assert said in message
    assert "takes multiples of" in message


def test_gptqmodel_s_awq_wants_outputs_by_64() -> None:
    assert "'model.layers.0.self_attn.k_proj' has 32 outputs" in refusal("awq", shapes(keys=32))
    assert recipe_of("gptq", shapes(keys=32)).modules == 14


@given(
    hidden=st.integers(1, 40).map(lambda n: 16 * n),
    inner=st.integers(1, 40).map(lambda n: 16 * n),
    group=st.sampled_from([None, -1, 16, 32, 64, 128, 256]),
    quantizer=st.sampled_from(QUANTIZERS),
)
def test_a_recipe_always_fits(
    hidden: int, inner: int, group: int | None, quantizer: Quantizer
) -> None:
    tensors = shapes(hidden, inner, 64)
    try:
        recipe = check(LLAMA, tensors, QuantizeOptions(group_size=group), quantizer)
    except UsageError as error:
        assert "\n" not in error.message
        taken = group is None or group in quantizer.group_sizes
        divided = group in (None, -1) or not (hidden % group or inner % group)
        multiple = quantizer.outputs
        assert hidden % multiple or inner % multiple or not taken or not divided
        return
    assert recipe.group_size in quantizer.group_sizes
    assert group in (None, recipe.group_size)
    for size in (hidden, inner):
        assert size % quantizer.outputs == 0
        assert recipe.group_size == -1 or size % recipe.group_size == 0


def test_symmetry() -> None:
    assert recipe_of("awq", shapes()).symmetric is False
    assert recipe_of("gptq", shapes()).symmetric is True
    assert recipe_of("gptq", shapes(), symmetric=True).symmetric is True
    assert "gptq symmetric only" in refusal("gptq", shapes(), symmetric=False)
    assert "awq asymmetric only" in refusal("awq", shapes(), symmetric=True)
    assert recipe_of("gptq", shapes()).desc_act is False


def test_models_that_are_not_taken() -> None:
    mixture = shapes() | {"model.layers.0.mlp.experts.0.up_proj.weight": (512, 256)}
    assert "mixture of experts (qwen3_moe)" in refusal("awq", mixture, {"model_type": "qwen3_moe"})
    fused = shapes() | {"model.layers.0.mlp.experts.gate_up_proj": (4, 256, 512)}
    assert "mixture of experts" in refusal("gptq", fused, {"model_type": "qwen3_moe"})
    assert "for models of type 'gpt2'" in refusal("awq", shapes(), {"model_type": "gpt2"})
    # AWQ would move scales into a norm that is not before the MLP.
    assert "for models of type 'gemma2'" in refusal("awq", shapes(), {"model_type": "gemma2"})
    assert recipe_of("gptq", shapes(), {"model_type": "gemma2"}).modules == 14
    assert "'None'" in refusal("awq", shapes(), {})
    quantized = LLAMA | {"quantization_config": {"quant_method": "awq"}}
    assert "quantized already" in refusal("gptq", shapes(), quantized)
    strange = shapes() | {"model.layers.1.mlp.fc1.weight": (512, 256)}
    assert "does not know the module 'model.layers.1.mlp.fc1'" in refusal("awq", strange)
    headless: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (100, 256)}
    assert "no layers with linear modules" in refusal("awq", headless)


def test_there_is_a_quantizer_of_that_name() -> None:
    with pytest.raises(UsageError, match="no quantizer 'exl2': there are awq, gptq"):
        quantizer_of("exl2")


@pytest.mark.parametrize("row", QUANTIZERS, ids=lambda row: row.name)
def test_a_row_is_complete(row: Quantizer) -> None:
    """Its driver is there, and what it writes has a layout and a config that names the method."""
    assert (Path(drivers.__file__).parent / row.driver).is_file()
    assert environment_of(row.environment)
    recipe = check(LLAMA, shapes(), AUTO, row)
    assert layout_of(recipe, 256, 512)
    assert quantization_config(recipe)["quant_method"] == recipe.method == row.method
