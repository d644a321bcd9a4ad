"""AutoRound 0.16.1, written in the formats of AWQ (asymmetric) and GPTQ (symmetric).

Each layer's rounding and clipping is learnt by signed gradient descent (arXiv 2309.05516) on what
the layers before it, rounded already, make of the samples. Of the order: `recipe` (method, bits,
group_size, symmetric, iterations, layers), `samples` (token ids), `seed`, `threads`, `device`.
"""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

_FORMATS = {"awq": "auto_awq", "gptq": "auto_gptq"}
# So many rows are learnt from at once; the tool's own default.
_BATCH = 8


def quantize(order: dict[str, Any], tell: Any) -> dict[str, Any]:
    """Quantize order["model"] into order["out"]; the tools' versions and notes."""
    tell({"step": "loading auto-round and the model"})
    import torch
    from auto_round import AutoRound, SignRoundConfig
    from transformers import AutoModelForCausalLM

    torch.manual_seed(order["seed"])
    torch.set_num_threads(order["threads"])
    recipe, out = order["recipe"], Path(order["out"])
    model = AutoModelForCausalLM.from_pretrained(order["model"], dtype=torch.float32)
    _keep_precision(model)
    _report(tell, recipe["layers"])
    rows = _packed(order["samples"])
    rounder = AutoRound(
        model,
        # It insists on one.
        tokenizer=_NoTokenizer(),
        scheme="W4A16",
        alg_configs=SignRoundConfig(
            iters=recipe["iterations"],
            bits=recipe["bits"],
            group_size=recipe["group_size"],
            sym=recipe["symmetric"],
        ),
        dataset=[_as_batch(torch, row) for row in rows],
        seqlen=len(rows[0]),
        nsamples=len(rows),
        batch_size=min(_BATCH, len(rows)),
        device_map=order["device"],
        # Products in bf16, which takes half the time; see _keep_precision.
        amp=True,
        enable_torch_compile=False,
        enable_deterministic_algorithms=True,
        seed=order["seed"],
        low_cpu_mem_usage=False,
    )
    tell({"step": f"quantizing {recipe['layers']} layers with {len(rows)} rows of text"})
    staging = out / "staging"
    rounder.quantize_and_save(str(staging), format=_FORMATS[recipe["method"]])
    tell({"step": "writing the quantized model"})
    # In a subdirectory that it names itself.
    (written,) = staging.rglob("config.json")
    _round_once(torch, written.parent, Path(order["model"]), out)
    shutil.rmtree(staging)
    tools = ("auto-round", "torch", "transformers")
    return {"tools": {name: version(name) for name in tools}, "notes": []}


def _keep_precision(model: Any) -> None:
    """Have no weight rounded to bf16 before it is rounded to 4 bits, which it does otherwise."""
    # What has this in its name stays in fp32: every parameter.
    model._keep_in_fp32_modules_strict = [""]


class _NoTokenizer:
    """In place of a tokenizer: the samples are token ids already."""

    # With a padding token it would hide that token from the model, and in many models it is the
    # one that ends each turn of a chat.
    pad_token = pad_token_id = None
    model_max_length = sys.maxsize

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        """Nothing: what lies beside the weights is not this driver's business."""


def _packed(samples: list[list[int]]) -> list[list[int]]:
    """The samples end to end in rows of the longest one's length: it takes one length only.

    What does not fill the last row is left out.
    """
    length = max(map(len, samples))
    stream = [token for sample in samples for token in sample]
    return [stream[at : at + length] for at in range(0, len(stream) - length + 1, length)]


def _as_batch(torch: Any, row: list[int]) -> dict[str, Any]:
    ids = torch.tensor([row])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _report(tell: Any, layers: int) -> None:
    """Tell of each layer that is done."""
    from auto_round.algorithms.composer import AlgorithmComposer

    original = AlgorithmComposer.compress_block
    done = 0

    def told(*args: Any, **named: Any) -> Any:
        nonlocal done
        answer = original(*args, **named)
        done += 1
        tell({"progress": [min(done, layers), layers]})
        return answer

    AlgorithmComposer.compress_block = told


def _round_once(torch: Any, written: Path, model: Path, out: Path) -> None:
    """Copy the weights to `out`, those that are not quantized from `model`, rounded to bf16.

    auto-round rounds them to fp16 and then puts some of the model's fp32 ones back.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    places = {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            places.update(dict.fromkeys(tensors.keys(), file))
    for file in sorted(written.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            content = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
            about = tensors.metadata()
        for name in content.keys() & places.keys():
            with safe_open(places[name], "pt") as source:
                content[name] = source.get_tensor(name).to(torch.bfloat16)
        save_file(content, out / file.name, about)
    for file in written.glob("*.index.json"):
        shutil.copyfile(file, out / file.name)
