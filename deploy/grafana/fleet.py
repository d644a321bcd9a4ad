"""The first page: is everything well, who asks how much, how long does it take."""

from __future__ import annotations

from deploy.grafana.panels import (
    HERE,
    Board,
    bars,
    lines,
    number,
    quantile,
    quantiles,
    rate,
    spread,
    stack,
)

_REQUESTS = "adapterctl_requests_total"
_FAILURES = 'job:adapterctl_failures:ratio5m{job=~"$job"}'
_QUEUE = f"adapterctl_queue_requests{{{HERE}}}"

_NOW = (
    number(
        "servers",
        "none",
        'sum(up{job=~"$job",instance=~"$instance"})',
        about="That answer Prometheus.",
    ),
    number(
        "engines",
        "none",
        f"sum(adapterctl_engine_up{{{HERE}}}) "
        f"+ (sum(adapterctl_merged_engine_up{{{HERE}}}) or vector(0))",
        about="Ready: the base's, and those of merged models.",
    ),
    number("requests", "reqps", f"sum(rate({_REQUESTS}{{{HERE}}}[$__rate_interval]))"),
    number(
        "failures",
        "percentunit",
        f"max({_FAILURES}) or vector(0)",
        about="The server's own, of all requests, in five minutes.",
        limits=(0.01, 0.05),
    ),
    number(
        "first token, p95",
        "s",
        quantile("adapterctl_time_to_first_token_seconds", 0.95),
        limits=(2.5, 10),
    ),
    number(
        "tokens written",
        "none",
        f"sum(rate(adapterctl_completion_tokens_total{{{HERE}}}[$__rate_interval]))",
        about="A second.",
    ),
    number("being answered", "none", f"sum(adapterctl_requests_in_flight{{{HERE}}})"),
    number(
        "alerts",
        "none",
        'count(ALERTS{alertstate="firing",alertname=~"Adapterctl.*"}) or vector(0)',
        about="That fire now; docs/runbooks.md says what to do.",
        limits=(1, 3),
    ),
)
_TRAFFIC = (
    stack("requests by lane", "reqps", (rate(_REQUESTS, "lane"), "{{lane}}")),
    stack(
        "requests by outcome",
        "reqps",
        (rate(_REQUESTS, "outcome"), "{{outcome}}"),
        about="`ok`, or an error's code: docs/errors.md.",
    ),
    lines(
        "the busiest adapters",
        "reqps",
        (f"topk(10, {rate(_REQUESTS, 'adapter')})", "{{adapter}}"),
    ),
    stack(
        "tokens",
        "none",
        (f"sum(rate(adapterctl_prompt_tokens_total{{{HERE}}}[$__rate_interval]))", "read"),
        (f"sum(rate(adapterctl_completion_tokens_total{{{HERE}}}[$__rate_interval]))", "written"),
        about="A second, by the engines' own count.",
    ),
    lines(
        "failures by adapter",
        "percentunit",
        (
            'topk(10, adapter:adapterctl_failures:rate5m{job=~"$job"} '
            '/ adapter:adapterctl_requests:rate5m{job=~"$job"})',
            "{{adapter}}",
        ),
        about="The server's own failures, of the adapter's requests.",
        needs="degenerate",
    ),
    lines(
        "being answered",
        "none",
        (f"topk(10, sum by (adapter) (adapterctl_requests_in_flight{{{HERE}}}))", "{{adapter}}"),
    ),
)
_LATENCY = (
    lines("to the first token", "s", *spread("adapterctl_time_to_first_token_seconds")),
    lines("between tokens", "s", *spread("adapterctl_inter_token_seconds")),
    lines("whole answers", "s", *spread("adapterctl_request_seconds")),
    lines(
        "to the first token, by adapter",
        "s",
        (quantiles("adapterctl_time_to_first_token_seconds", "adapter"), "{{adapter}}"),
        about="95th percentile of the ten slowest.",
    ),
    lines(
        "waited before an engine had it",
        "s",
        *spread("adapterctl_wait_seconds"),
        about="For an engine's start and for a turn there.",
    ),
    stack(
        "waiting",
        "none",
        (f"sum by (lane, reason) ({_QUEUE})", "{{lane}}: {{reason}}"),
        about="By what holds them back: a place, a slot, prompts that are read.",
    ),
)
_TENANTS = (
    stack(
        "requests by tenant",
        "reqps",
        (f"topk(10, {rate('adapterctl_tenant_requests_total', 'tenant')})", "{{tenant}}"),
    ),
    stack(
        "tokens by tenant",
        "none",
        (f"topk(10, {rate('adapterctl_tenant_tokens_total', 'tenant')})", "{{tenant}}"),
        about="Read and written, a second.",
    ),
    lines(
        "to the first token, by tenant",
        "s",
        (quantiles("adapterctl_tenant_time_to_first_token_seconds", "tenant"), "{{tenant}}"),
        about="95th percentile: a tenant far above the others is being crowded out.",
    ),
    lines(
        "waited, by tenant",
        "s",
        (quantiles("adapterctl_tenant_wait_seconds", "tenant"), "{{tenant}}"),
        about="95th percentile.",
    ),
    lines(
        "whole answers, by tenant",
        "s",
        (quantiles("adapterctl_tenant_request_seconds", "tenant"), "{{tenant}}"),
        about="95th percentile.",
    ),
    lines(
        "being answered, waiting",
        "none",
        (
            f"sum by (tenant) (adapterctl_tenant_requests_in_flight{{{HERE}}})",
            "{{tenant}} in flight",
        ),
        (f"sum by (tenant) (adapterctl_tenant_queue_requests{{{HERE}}})", "{{tenant}} waits"),
    ),
    lines(
        "what fairness counts",
        "none",
        (f"topk(10, {rate('adapterctl_tenant_service_tokens_total', 'tenant')})", "{{tenant}}"),
        about="Tokens read and twice those written, a second: by weight where there is not enough.",
    ),
    lines(
        "refused with 429",
        "reqps",
        (rate("adapterctl_queue_refused_total", "lane, reason"), "{{lane}}: {{reason}}"),
        about="The queue was full, or a request waited too long.",
    ),
)
_QUOTAS = (
    lines(
        "refused by quotas",
        "reqps",
        (rate("adapterctl_quota_rejections_total", "tenant, kind"), "{{tenant}}: {{kind}}"),
        needs="quota",
    ),
    bars(
        "used of quotas",
        "percentunit",
        (f"max by (tenant, kind) (adapterctl_quota_used_ratio{{{HERE}}})", "{{tenant}}: {{kind}}"),
        about="Of the fullest among a tenant's own and its keys'.",
        needs="quota",
        limits=(0.8, 0.95),
    ),
    lines(
        "where quotas are counted",
        "none",
        (f"min by (storage) (adapterctl_quota_storage_up{{{HERE}}})", "{{storage}}"),
        about="1 while it answers.",
        needs="quota",
    ),
)
_MACHINE = (
    lines(
        "memory",
        "bytes",
        (f"adapterctl_machine_memory_bytes{{{HERE}}}", "{{instance}} {{state}}"),
        (f"process_resident_memory_bytes{{{HERE}}}", "{{instance}} gateway"),
    ),
    lines(
        "the store's disk",
        "bytes",
        (f"adapterctl_store_disk_bytes{{{HERE}}}", "{{instance}} {{state}}"),
    ),
    lines(
        "file descriptors of the gateway",
        "none",
        (f"process_open_fds{{{HERE}}}", "{{instance}} open"),
        (f"process_max_fds{{{HERE}}}", "{{instance}} at most"),
    ),
    lines(
        "what the registry holds",
        "none",
        (f"max by (kind) (adapterctl_registry_entries{{{HERE}}})", "{{kind}}"),
    ),
    lines(
        "processor time of the gateway",
        "percentunit",
        (f"rate(process_cpu_seconds_total{{{HERE}}}[$__rate_interval])", "{{instance}}"),
        about="1 is a whole core; the gateway has one.",
    ),
)

BOARD = Board(
    uid="adapterctl-fleet",
    title="adapterctl: fleet",
    about="All servers: requests, latency, tenants, quotas, machines.",
    rows=(
        ("now", _NOW),
        ("requests", _TRAFFIC),
        ("latency", _LATENCY),
        ("tenants", _TENANTS),
        ("quotas", _QUOTAS),
        ("machines", _MACHINE),
    ),
)
