"""Engines and slots: what holds which adapters, what fetching them costs, what vLLM says."""

from __future__ import annotations

from deploy.grafana.panels import (
    HERE,
    Board,
    Variable,
    bars,
    lines,
    per,
    quantiles,
    rate,
    rows,
    stack,
)

_ENGINE = f'{HERE},engine=~"$engine"'

_UP = (
    lines(
        "up",
        "none",
        (f"adapterctl_engine_up{{{HERE}}}", "{{instance}} {{base}}"),
        (f"adapterctl_merged_engine_up{{{HERE}}}", "{{instance}} {{version}}"),
        about="1 while it is ready.",
    ),
    lines(
        "started again after failures",
        "none",
        (f"increase(adapterctl_engine_restarts_total{{{HERE}}}[$__range])", "{{base}}"),
        (f"increase(adapterctl_merged_engine_restarts_total{{{HERE}}}[$__range])", "{{version}}"),
    ),
    lines(
        "tells its metrics",
        "none",
        (f"adapterctl_engine_metrics_up{{{_ENGINE}}}", "{{instance}} {{engine}}"),
        about="0 beside 1 in `up`: it hangs.",
    ),
    bars(
        "last start",
        "s",
        (f"adapterctl_merged_engine_start_seconds{{{HERE}}}", "{{version}}"),
        about="Of merged engines.",
        needs="merged",
    ),
    lines(
        "what became of merged engines",
        "none",
        (f"sum by (event) (adapterctl_merged_engine_events_total{{{HERE}}})", "{{event}}"),
        about="Since the server began. Evictions without end: more models than memory.",
    ),
    rows(
        "merged engines",
        "none",
        f"sum by (version, state) (adapterctl_merged_engine_requests{{{HERE}}})",
        about="Requests that each has, and those that wait for its start.",
        needs="merged",
        width=8,
    ),
)
_SLOTS = (
    stack(
        "slots",
        "none",
        (f'sum by (state) (adapterctl_engine_slots{{{HERE},state=~"used|free"}})', "{{state}}"),
        about="Of the base's engine. All used is well as long as few have to be swapped.",
    ),
    lines(
        "swaps for each request",
        "none",
        (
            'instance:adapterctl_adapter_swaps:per_request5m{job=~"$job",instance=~"$instance"}',
            "{{instance}}",
        ),
        about="Above one half, adapters crowd each other out: more slots, pins, or merged models.",
    ),
    lines(
        "loads, evictions, swaps",
        "ops",
        (
            f"sum(rate(adapterctl_adapter_loads_total{{{HERE}}}[$__rate_interval]))",
            "read from disk",
        ),
        (
            f"sum(rate(adapterctl_adapter_prefetched_total{{{HERE}}}[$__rate_interval]))",
            "of these, ahead",
        ),
        (
            f"sum(rate(adapterctl_adapter_overlapped_total{{{HERE}}}[$__rate_interval]))",
            "nobody waited",
        ),
        (
            f"sum(rate(adapterctl_adapter_evictions_total{{{HERE}}}[$__rate_interval]))",
            "left memory",
        ),
        (f"sum(rate(adapterctl_adapter_swaps_total{{{HERE}}}[$__rate_interval]))", "into a slot"),
    ),
    lines(
        "a load, a swap",
        "s",
        (
            f"sum(adapterctl_adapter_load_seconds_total{{{HERE}}}) "
            f"/ sum(adapterctl_adapter_loads_total{{{HERE}}})",
            "load",
        ),
        (
            f"sum(adapterctl_adapter_swap_seconds_total{{{HERE}}}) "
            f"/ sum(adapterctl_adapter_swaps_total{{{HERE}}})",
            "swap",
        ),
        about="On average, since the engine began.",
    ),
    lines(
        "time spent on swaps",
        "percentunit",
        (
            'instance:adapterctl_adapter_swap_seconds:ratio5m{job=~"$job",instance=~"$instance"}',
            "{{instance}}",
        ),
        about="In which the engine does nothing else.",
    ),
    rows(
        "adapters in the engine",
        "none",
        f"sum by (adapter, where) (adapterctl_adapter_resident{{{HERE}}})",
        about="How many versions of each are in slots, and in memory.",
        width=8,
    ),
)
_ROOM = (
    lines(
        "places",
        "none",
        (f"sum by (lane, state) (adapterctl_engine_places{{{HERE}}})", "{{lane}}: {{state}}"),
        about="Answers that engines work on at once.",
    ),
    lines(
        "memory as planned",
        "bytes",
        (f"sum by (part) (adapterctl_engine_memory_bytes{{{HERE}}})", "{{part}}"),
        about="What running engines are taken to need, and the limit for all.",
    ),
    lines(
        "memory as it is",
        "bytes",
        (f"sum by (engine) (adapterctl_engine_resident_bytes{{{_ENGINE}}})", "{{engine}}"),
        about="Of the engines' processes; what they share counts for each.",
    ),
)
_VLLM = (
    lines(
        "requests in engines",
        "none",
        (
            f"sum by (engine, state) (adapterctl_engine_requests{{{_ENGINE}}})",
            "{{engine}} {{state}}",
        ),
        about="By vLLM's own count. The gateway keeps the queue: few should wait here.",
    ),
    lines(
        "KV cache",
        "percentunit",
        (f"max by (engine) (adapterctl_engine_kv_cache_usage_ratio{{{_ENGINE}}})", "{{engine}}"),
        about="Near 1, requests are preempted and read again.",
        limits=(0.8, 0.95),
    ),
    lines(
        "preempted",
        "reqps",
        (rate("vllm:num_preemptions_total", "engine", where=_ENGINE), "{{engine}}"),
    ),
    stack(
        "tokens in engines",
        "none",
        (rate("vllm:prompt_tokens_total", "engine", where=_ENGINE), "{{engine}} read"),
        (rate("vllm:generation_tokens_total", "engine", where=_ENGINE), "{{engine}} written"),
        about="A second, by vLLM's own count.",
    ),
    lines(
        "prefix cache",
        "percentunit",
        (
            per(
                "vllm:prefix_cache_hits_total",
                "vllm:prefix_cache_queries_total",
                "engine",
                where=_ENGINE,
            ),
            "{{engine}}",
        ),
        about="Part of the prompts' tokens that were there already.",
    ),
    lines(
        "to the first token in engines",
        "s",
        (quantiles("vllm:time_to_first_token_seconds", "engine", where=_ENGINE), "{{engine}}"),
        about="95th percentile. What the gateway sees beyond that is waiting.",
    ),
    lines(
        "between tokens in engines",
        "s",
        (quantiles("vllm:inter_token_latency_seconds", "engine", where=_ENGINE), "{{engine}}"),
        about="95th percentile.",
    ),
    lines(
        "tokens in a step",
        "none",
        (
            per(
                "vllm:iteration_tokens_total_sum",
                "vllm:iteration_tokens_total_count",
                "engine",
                where=_ENGINE,
            ),
            "{{engine}}",
        ),
        about="On average: how full batches are.",
    ),
    lines(
        "ended requests",
        "reqps",
        (
            rate("vllm:request_success_total", "engine, finished_reason", where=_ENGINE),
            "{{engine}} {{finished_reason}}",
        ),
    ),
)

BOARD = Board(
    uid="adapterctl-engines",
    title="adapterctl: engines and slots",
    about="Which engines are up, what they hold, what fetching costs, and vLLM's own view.",
    variables=(
        Variable("engine", f"label_values(adapterctl_engine_metrics_up{{{HERE}}}, engine)"),
    ),
    rows=(("engines", _UP), ("slots", _SLOTS), ("room", _ROOM), ("vLLM", _VLLM)),
)
