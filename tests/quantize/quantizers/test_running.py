"""The real tool, in its own environment, on tiny models: what it writes, what it says, how it ends.

The environment is made for real if there is none (ADAPTERCTL_TOOLS, or with adapterctl's own).
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapters.bases.shards import open_base
from adapters.errors import ToolFailed
from adapters.jobs.orders import QuantizeOptions
from quantize.merging.merge import Watcher
from quantize.quantizers.checks import check
from quantize.quantizers.finishing import finish
from quantize.quantizers.recipe import Quantized, Recipe
from quantize.quantizers.running import run_quantizer
from quantize.quantizers.table import quantizer_of
from tests.quantize.test_children import gone
from tests.quantize.tiny import samples, write_model

_AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


@dataclass
class Run:
    """One run of a tool, and what a watcher heard of it."""

    model: Path
    out: Path
    log: Path
    recipe: Recipe
    quantized: Quantized | None = None
    steps: list[str] = field(default_factory=list)
    progress: list[tuple[int, int]] = field(default_factory=list)

    def go(self, **options: Any) -> Quantized:
        watch = Watcher(self.steps.append, lambda done, total: self.progress.append((done, total)))
        texts = samples(8, 48)
        self.quantized = run_quantizer(
            self.recipe, self.model, self.out, texts, watch, self.log, **options
        )
        return self.quantized

    def weights(self) -> dict[str, torch.Tensor]:
        return dict(load_file(self.out / "model.safetensors"))


def recipe_of(name: str, model: Path, **options: Any) -> Recipe:
    files = open_base(model)
    shapes = {key: info.shape for key, (_, info) in files.tensors().items()}
    return check(files.config, shapes, QuantizeOptions(**options), quantizer_of(name))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Run]:
    def prepare(name: str, kind: str) -> Run:
        folder = tmp_path_factory.mktemp(name)
        model = write_model(folder / "model", kind)
        return Run(model, folder / "out", folder / "tool.log", recipe_of(name, model))

    return prepare


@pytest.fixture(scope="module")
def awq(prepared: Callable[[str, str], Run]) -> Run:
    run = prepared("awq", "qwen2")
    run.go()
    return run


@pytest.fixture(scope="module")
def gptq(prepared: Callable[[str, str], Run]) -> Run:
    run = prepared("gptq", "llama")
    run.go()
    return run


def unpacked(packed: torch.Tensor, axis: int) -> torch.Tensor:
    """The eight 4-bit values of each int32, side by side along `axis`."""
    values = torch.stack([(packed >> (4 * place)) & 15 for place in range(8)], axis + 1)
    return values.flatten(axis, axis + 1)


def of_awq(weights: dict[str, torch.Tensor], module: str, group: int) -> torch.Tensor:
    """The [out, in] weight of a module in AWQ's GEMM form."""

    def read(name: str) -> torch.Tensor:
        values = unpacked(weights[f"{module}.{name}"], 1)
        order = torch.tensor(_AWQ_ORDER).argsort()
        return values.reshape(len(values), -1, 8)[:, :, order].reshape(values.shape).float()

    scales = weights[f"{module}.scales"].float().repeat_interleave(group, 0)
    zeros = read("qzeros").repeat_interleave(group, 0)
    return ((read("qweight") - zeros) * scales).T


def of_gptq(weights: dict[str, torch.Tensor], module: str) -> torch.Tensor:
    """The [out, in] weight of a module in AutoGPTQ's form, whose zero points are one too small."""
    groups = weights[f"{module}.g_idx"].long()
    zeros = (unpacked(weights[f"{module}.qzeros"], 1) + 1)[groups].float()
    scales = weights[f"{module}.scales"].float()[groups]
    return ((unpacked(weights[f"{module}.qweight"], 0).float() - zeros) * scales).T


def test_gptq_is_near_the_weights_it_was_made_from(gptq: Run) -> None:
    before, after = load_file(gptq.model / "model.safetensors"), gptq.weights()
    for name, weight in before.items():
        if name.endswith("_proj.weight"):
            got = of_gptq(after, name.removesuffix(".weight"))
            # 4 bits of a normal distribution in groups of 64: 10 %, and more where errors are
            # passed on.
            assert torch.dist(got, weight) / weight.norm() < 0.25
        else:
            assert torch.equal(after[name], weight.bfloat16())


def test_awq_is_near_the_weights_it_was_made_from(awq: Run) -> None:
    before, after = load_file(awq.model / "model.safetensors"), awq.weights()
    for layer in range(2):
        stem = f"model.layers.{layer}"
        # AWQ moves a scale of each input into what comes before, which is a norm here.
        for norm, modules in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            moved = before[f"{stem}.{norm}.weight"] / after[f"{stem}.{norm}.weight"].float()
            for module in modules:
                weight = before[f"{stem}.{module}.weight"]
                got = of_awq(after, f"{stem}.{module}", awq.recipe.group_size) / moved
                # Queries and keys are not clipped, the MLP is. Values in a wrong order would be
                # at 1.4, and weights that its search did not put back at 0.46.
                limit = 0.3 if norm == "input_layernorm" else 0.6
                assert torch.dist(got, weight) / weight.norm() < limit
        # Biases and embeddings are rounded once.
        for bias in ("self_attn.q_proj.bias", "self_attn.k_proj.bias"):
            assert torch.equal(after[f"{stem}.{bias}"], before[f"{stem}.{bias}"].bfloat16())
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(after[name], before[name].bfloat16())


def test_the_directory_is_one_that_is_served(awq: Run, gptq: Run) -> None:
    for run, expected in (
        (awq, {"quant_method": "awq", "version": "gemm", "zero_point": True, "group_size": 64}),
        (gptq, {"quant_method": "gptq", "sym": True, "desc_act": False, "group_size": 64}),
    ):
        config = json.loads((run.out / "config.json").read_text())
        assert expected.items() <= config.pop("quantization_config").items()
        source = json.loads((run.model / "config.json").read_text())
        assert config == source | {"dtype": "bfloat16"}
        names = {"config.json", "generation_config.json", "model.safetensors"}
        assert names <= {path.name for path in run.out.iterdir()}
        assert not {path.suffix for path in run.out.iterdir()} - {".json", ".safetensors"}
        finish(run.out, run.model, run.recipe)  # what is right stays right


def test_what_a_watcher_hears(awq: Run, gptq: Run) -> None:
    for run in (awq, gptq):
        assert run.progress == [(1, 2), (2, 2)]
        assert "quantizing 2 layers with 8 texts" in run.steps
        assert run.quantized is not None
        assert run.quantized.tools["gptqmodel"] == "7.6.0"
        assert run.quantized.seconds > 0
        # Of the tool's process alone: torch and a tiny model.
        assert 200e6 < run.quantized.peak_rss < 2e9
        assert run.quantized.notes[0].startswith("groups of 64: the 192 inputs")
        assert "gptqmodel" in run.log.read_text(errors="replace").lower()


def test_the_same_inputs_give_the_same_bytes(
    gptq: Run, prepared: Callable[[str, str], Run]
) -> None:
    again = prepared("gptq", "llama")
    again.go()
    digests = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in run.out.iterdir()}
        for run in (gptq, again)
    ]
    assert digests[0] == digests[1]


def test_what_the_tool_refuses_is_one_line(prepared: Callable[[str, str], Run]) -> None:
    run = prepared("gptq", "llama")
    (run.model / "tokenizer.json").unlink()
    with pytest.raises(ToolFailed) as failed:
        run.go()
    message = failed.value.message
    assert message.startswith("GPTQ, 4 bits with gptqmodel failed: ")
    assert message.endswith(f"its log is {run.log}")
    assert "\n" not in message
    assert "Traceback" in run.log.read_text(errors="replace")


class Interrupting(list[str]):
    """Does something to the tool's process as soon as it works."""

    def __init__(self, act: Callable[[int], object]):
        self._act = act
        self.tool = 0

    def append(self, step: str) -> None:
        if step.startswith("loading"):
            (self.tool,) = [
                child
                for child in children_of(os.getpid())
                if b"child.py" in Path(f"/proc/{child}/cmdline").read_bytes()
            ]
            self._act(self.tool)


def test_ctrl_c_ends_the_tool(prepared: Callable[[str, str], Run]) -> None:
    def interrupt(tool: int) -> None:
        raise KeyboardInterrupt

    run = prepared("gptq", "llama")
    run.steps = steps = Interrupting(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.go()
    assert gone(steps.tool)


def test_a_tool_that_is_killed_is_told(prepared: Callable[[str, str], Run]) -> None:
    run = prepared("gptq", "llama")
    run.steps = Interrupting(lambda tool: os.kill(tool, signal.SIGKILL))
    with pytest.raises(ToolFailed, match="gptqmodel was killed by signal 9: most likely"):
        run.go()


def children_of(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in threads for child in (task / "children").read_text().split()]
