"""Every series that a dashboard or a rule may ask for."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from deploy.prometheus.promql import rules

DOCS = Path(__file__).parents[2] / "docs"
# Of vLLM's own only what is asked for; a real engine has them (tests/engine/test_dashboards.py).
VLLM = {
    "vllm:num_preemptions_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:prefix_cache_hits_total",
    "vllm:prefix_cache_queries_total",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:iteration_tokens_total_sum",
    "vllm:iteration_tokens_total_count",
    "vllm:request_success_total",
}
PROCESS = {
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
}


@functools.cache
def known_metrics() -> frozenset[str]:
    """Documented ones with their suffixes, recorded ones, and Prometheus' own."""
    found = {"up", "ALERTS"} | VLLM | PROCESS | set(rules("record"))
    rows = re.findall(r"^\| `([\w:]+)` \| (\w+) \|", (DOCS / "metrics.md").read_text("utf-8"), re.M)
    for name, kind in rows:
        suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        found |= {name + suffix for suffix in suffixes}
    return frozenset(found)
