"""Jobs, and what merging and rounding has cost in quality."""

from __future__ import annotations

from deploy.grafana.panels import HERE, Board, bars, lines, number, rows, stack

_JOBS = f"adapterctl_jobs{{{HERE}}}"
_MERGE = "max by (adapter, version, texts)"


def _jobs(state: str) -> str:
    # Every server of a store tells of the same jobs.
    return f'sum(max by (kind) (adapterctl_jobs{{{HERE},state=~"{state}"}}))'


_NOW = (
    number("running", "none", _jobs("running"), width=4),
    number("queued", "none", _jobs("queued"), width=4),
    number("succeeded", "none", _jobs("succeeded"), width=4, about="That the registry knows."),
    number("failed", "none", _jobs("failed"), width=4, limits=(1,)),
    number("rejected", "none", _jobs("rejected"), width=4, about="By a quality gate.", limits=(1,)),
    number(
        "interrupted",
        "none",
        _jobs("interrupted"),
        width=4,
        about="Their processes died; `adapterctl jobs resume` goes on with them.",
        limits=(1,),
    ),
)
_WORK = (
    stack(
        "jobs by state",
        "none",
        (f"max by (kind, state) ({_JOBS}) > 0", "{{kind}} {{state}}"),
        needs="job",
    ),
    lines(
        "progress of the step",
        "percentunit",
        (f"max by (id, kind) (adapterctl_job_progress_ratio{{{HERE}}})", "{{kind}} {{id}}"),
        needs="job",
    ),
    lines(
        "at work for",
        "s",
        (f"max by (id, kind) (adapterctl_job_running_seconds{{{HERE}}})", "{{kind}} {{id}}"),
        needs="job",
    ),
    bars(
        "the last took",
        "s",
        (f"max by (kind, state) (adapterctl_job_last_seconds{{{HERE}}})", "{{kind}} {{state}}"),
        needs="job",
    ),
    bars(
        "the last ended",
        "s",
        (
            f"time() - max by (kind, state) (adapterctl_job_last_end_timestamp_seconds{{{HERE}}})",
            "{{kind}} {{state}}",
        ),
        about="So long ago.",
        needs="job",
    ),
    lines(
        "the store's disk",
        "bytes",
        (f"adapterctl_store_disk_bytes{{{HERE}}}", "{{instance}} {{state}}"),
        about="A merged model is as large as its base.",
    ),
)
_QUALITY = (
    bars(
        "perplexity against its reference",
        "percentunit",
        (
            f"{_MERGE} (adapterctl_merge_perplexity{{{HERE}}}) "
            f"/ {_MERGE} (adapterctl_merge_reference_perplexity{{{HERE}}}) - 1",
            "{{adapter}}:{{version}} {{texts}}",
        ),
        about="How much more than the base with the adapter; 0 is as good.",
        needs="job",
        limits=(0.02, 0.1),
    ),
    bars(
        "divergence",
        "none",
        (f"{_MERGE} (adapterctl_merge_kl_nats{{{HERE}}})", "{{adapter}}:{{version}} {{texts}}"),
        about="Mean Kullback-Leibler divergence of the next token, in nats.",
        needs="job",
    ),
    bars(
        "agreement",
        "percentunit",
        (
            f"{_MERGE} (adapterctl_merge_agreement_ratio{{{HERE}}})",
            "{{adapter}}:{{version}} {{texts}}",
        ),
        about="Places where both find the same token likeliest.",
        needs="job",
    ),
    rows(
        "merged models",
        "none",
        f"{_MERGE} (adapterctl_merge_perplexity{{{HERE}}})",
        about="Perplexity on each set of texts; the report of the job has the rest.",
        needs="job",
    ),
)

BOARD = Board(
    uid="adapterctl-jobs",
    title="adapterctl: jobs and quality",
    about="Merges, quantizations and evaluations, and how near their results come.",
    rows=(("now", _NOW), ("work", _WORK), ("quality of merged models", _QUALITY)),
)
