"""PEFT on transformers: batches by generate(), asked for over lines of JSON.

`python -m loadtests.compare.peft_runner BASE NAME=DIR…`. A line {prompts, tokens, adapters} is
answered with {seconds}; `adapters` null is the base, one name is PEFT's ordinary way, a list of
names (one a prompt) its mixed batch. Sampling is greedy and never ends before `tokens`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import nullcontext
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def load(base: str, adapters: dict[str, str]) -> Any:
    """The base in its own dtype (bfloat16) with all adapters in memory, ready to generate."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    first, *others = adapters
    model = PeftModel.from_pretrained(model, adapters[first], adapter_name=first)
    for name in others:
        model.load_adapter(adapters[name], adapter_name=name)
    # PEFT keeps factors in float32 where they were saved so; an engine computes in the base's.
    return model.to(torch.bfloat16).eval()


@torch.inference_mode()
def generate(model: Any, prompts: torch.Tensor, tokens: int, adapters: Any) -> float:
    """Seconds of one batch; prompts are [requests, tokens], all of one length: no padding."""
    options = {
        "max_new_tokens": tokens,
        "min_new_tokens": tokens,
        "do_sample": False,
        "pad_token_id": 0,
        "attention_mask": torch.ones_like(prompts),
    }
    context = nullcontext()
    if adapters is None:
        context = model.disable_adapter()
    elif isinstance(adapters, str):
        model.set_adapter(adapters)
    else:
        options["adapter_names"] = adapters
    began = time.perf_counter()
    with context:
        made = model.generate(input_ids=prompts, **options)
    seconds = time.perf_counter() - began
    if made.shape != (prompts.shape[0], prompts.shape[1] + tokens):
        raise SystemExit(f"generate() made {tuple(made.shape)}")
    return seconds


def main() -> None:
    """Answer until the input ends."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    base, *given = sys.argv[1:]
    model = load(base, dict(item.split("=", 1) for item in given))
    print(json.dumps({"ready": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        prompts = torch.tensor(asked["prompts"])
        seconds = generate(model, prompts, asked["tokens"], asked["adapters"])
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
