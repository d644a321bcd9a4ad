"""vLLM in one process on several bases, one after another, with adapters: log-probs of texts.

One JSON document on stdin: "bases" {name: {"model", "adapters": {name: path}}}, "texts" (ids),
"rank", "tokenizer". One JSON line on stdout: {base: {adapter: [[log-prob of each next token]]}}, or
{base: message} where vLLM raised.
"""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.lora.request import LoRARequest


def measured(order: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    adapters, texts = base["adapters"], order["texts"]
    model = LLM(
        base["model"],
        tokenizer=order["tokenizer"],
        dtype="bfloat16",
        max_model_len=128,
        max_num_seqs=16,
        enforce_eager=True,
        enable_lora=True,
        enable_prefix_caching=False,
        max_loras=len(adapters),
        max_lora_rank=order["rank"],
        kv_cache_memory_bytes=64 * 2**20,
    )
    asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    requests: list[LoRARequest | None] = [None]
    requests += [LoRARequest(name, i, path) for i, (name, path) in enumerate(adapters.items(), 1)]
    # All in one batch, the base's own rows among them.
    pairs = [(text, request) for text in texts for request in requests]
    outputs = model.generate(
        [{"prompt_token_ids": text} for text, _ in pairs],
        asked,
        lora_request=[request for _, request in pairs],
        use_tqdm=False,
    )
    found: dict[str, Any] = {}
    for (text, request), output in zip(pairs, outputs, strict=True):
        rows = [
            row[token].logprob
            for row, token in zip(output.prompt_logprobs[1:], text[1:], strict=True)
        ]
        found.setdefault("" if request is None else request.lora_name, []).append(rows)
    return found


def main() -> None:
    order = json.load(sys.stdin)
    answer: dict[str, Any] = {}
    for name, base in order["bases"].items():
        try:
            answer[name] = measured(order, base)
        except Exception as error:  # noqa: BLE001 (the test says what vLLM said)
            answer[name] = f"{type(error).__name__}: {error}"
        gc.collect()
        cleanup_dist_env_and_memory()
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
