"""One adapter: its versions against each other, its canary, its shadow, its merges."""

from __future__ import annotations

from deploy.grafana.panels import (
    HERE,
    Board,
    Variable,
    lines,
    number,
    per,
    quantile,
    quantiles,
    rate,
    rows,
    spread,
    stack,
)

_OF = f'{HERE},adapter="$adapter"'
_VERSION = f'{_OF},version=~"$version"'
_REQUESTS = "adapterctl_requests_total"
_FIRST_TOKEN = "adapterctl_time_to_first_token_seconds"

_NOW = (
    number("requests", "reqps", f"sum(rate({_REQUESTS}{{{_OF}}}[$__rate_interval]))", width=4),
    number(
        "answered",
        "percentunit",
        f'sum(rate({_REQUESTS}{{{_OF},outcome="ok"}}[$__rate_interval])) '
        f"/ sum(rate({_REQUESTS}{{{_OF}}}[$__rate_interval]))",
        width=4,
        about="Of all requests that named it.",
    ),
    number("first token, p95", "s", quantile(_FIRST_TOKEN, 0.95, where=_OF), width=4),
    number(
        "tokens written",
        "none",
        f"sum(rate(adapterctl_completion_tokens_total{{{_OF}}}[$__rate_interval]))",
        width=4,
        about="A second.",
    ),
    number("being answered", "none", f"sum(adapterctl_requests_in_flight{{{_OF}}})", width=4),
    number(
        "waiting",
        "none",
        f"sum(adapterctl_adapter_queue_requests{{{_OF}}}) or vector(0)",
        width=4,
        about="For their turn at an engine.",
    ),
)
_TRAFFIC = (
    stack(
        "requests by version",
        "reqps",
        (rate(_REQUESTS, "version, lane", where=_VERSION), "{{version}} {{lane}}"),
    ),
    stack(
        "requests by outcome",
        "reqps",
        (rate(_REQUESTS, "version, outcome", where=_VERSION), "{{version}} {{outcome}}"),
    ),
    stack(
        "tokens written",
        "none",
        (
            rate("adapterctl_completion_tokens_total", "version", where=_VERSION),
            "{{version}}",
        ),
        about="A second.",
    ),
)
_LATENCY = (
    lines(
        "to the first token, by version",
        "s",
        (quantiles(_FIRST_TOKEN, "version, lane", where=_VERSION), "{{version}} {{lane}}"),
        about="95th percentile.",
    ),
    lines(
        "between tokens, by version",
        "s",
        (
            quantiles("adapterctl_inter_token_seconds", "version, lane", where=_VERSION),
            "{{version}} {{lane}}",
        ),
        about="95th percentile.",
    ),
    lines(
        "whole answers, by version",
        "s",
        (
            quantiles("adapterctl_request_seconds", "version, lane", where=_VERSION),
            "{{version}} {{lane}}",
        ),
        about="95th percentile.",
    ),
    lines("to the first token", "s", *spread(_FIRST_TOKEN, where=_VERSION)),
    lines(
        "waited before an engine had it", "s", *spread("adapterctl_wait_seconds", where=_VERSION)
    ),
    lines(
        "versions in the base's engine",
        "none",
        (f"sum by (where) (adapterctl_adapter_resident{{{_OF}}})", "{{where}}"),
        about="In slots, and in its memory. None: the next request has it read from disk.",
    ),
)
_CANARY = (
    lines(
        "canaries taken back",
        "none",
        (f"sum by (reason) (adapterctl_canary_rollbacks_total{{{_OF}}})", "{{reason}}"),
        (f"sum(adapterctl_quarantines_total{{{_OF}}})", "quarantined versions"),
        about="Since the server began.",
        needs="canary",
    ),
    lines(
        "answers that are none",
        "reqps",
        (
            rate("adapterctl_canary_degenerate_total", "role, reason", where=_OF),
            "{{role}}: {{reason}}",
        ),
        about="Under watched routes: empty, repeating, broken.",
        needs="degenerate",
    ),
    lines(
        "how unlikely answers are",
        "none",
        (
            per(
                "adapterctl_canary_answer_nats_sum",
                "adapterctl_canary_answer_nats_count",
                "role",
                where=_OF,
            ),
            "{{role}}",
        ),
        about="Nats per token, as the stable version finds; a canary far above writes nonsense.",
        needs="canary",
    ),
    stack(
        "copies for shadows",
        "reqps",
        (rate("adapterctl_shadow_requests_total", "outcome", where=_OF), "{{outcome}}"),
        needs="shadow",
    ),
    lines(
        "copies with the same answer",
        "percentunit",
        (
            f"(sum(rate(adapterctl_shadow_same_answers_total{{{_OF}}}[$__rate_interval])) "
            "or vector(0)) "
            f"/ sum(rate(adapterctl_shadow_seconds_count{{{_OF}}}[$__rate_interval]))",
            "to the letter",
        ),
        needs="shadow",
    ),
    lines(
        "what copies take",
        "s",
        *spread("adapterctl_shadow_seconds", where=_OF),
        needs="shadow",
    ),
)
_QUALITY = (
    rows(
        "merged models",
        "none",
        f'max by (version, texts) (adapterctl_merge_perplexity{{{HERE},adapter=~"$adapter.*"}})',
        about="Perplexity on each set of texts it was measured on.",
        needs="job",
    ),
)

BOARD = Board(
    uid="adapterctl-adapter",
    title="adapterctl: one adapter",
    about="Its versions and lanes against each other, its canary and shadow, its merges.",
    variables=(
        Variable(
            "adapter", f"label_values(adapterctl_requests_total{{{HERE}}}, adapter)", several=False
        ),
        Variable("version", f"label_values(adapterctl_requests_total{{{_OF}}}, version)"),
    ),
    rows=(
        ("now", _NOW),
        ("requests", _TRAFFIC),
        ("latency", _LATENCY),
        ("canary and shadow", _CANARY),
        ("quality", _QUALITY),
    ),
)
