"""A scenario from start to report, for programs: `run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from loadtests.reporting.summary import Summary
from loadtests.scenarios import Scenario


def run(
    scenario: Scenario | str,
    url: str,
    *,
    out: Path | None = None,
    models: Sequence[str] | None = None,
    base: str | None = None,
    api_key: str | None = None,
    tenant_keys: Mapping[str, str] | None = None,
    tenant_header: str | None = None,
    prompt_seed: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Summary:
    """Run `scenario` against the OpenAI-compatible server at `url`; blocks until it is over.

    `scenario` is a name of scenarios.toml or a document (`loadtests.scenarios.find`, `.changed`).
    `url` may end in /v1 or not. `models` are the adapters to ask for, the hottest first; None: as
    /v1/models lists them, without the base. `base` is the base's name where it is to be asked, too;
    None: as listed. `out` (a directory, made) gets requests.csv, summary.json, report.html; None:
    nothing is written. A tenant's requests carry its key of `tenant_keys`, else `api_key`, and its
    name in the header `tenant_header` where one is named. `prompt_seed` repeats the very words of
    an earlier run, which a prefix cache then knows; None: drawn anew. `progress` hears one line now
    and then.

    The load comes from a process of its own (Locust patches the one it is in), so this may be
    called from anywhere, in a thread under asyncio. Failed requests are in the summary
    (`error_share`), they raise nothing. Raises UsageError for what cannot be asked,
    ServerUnreachable, ToolFailed when the generator dies.
    """
    raise NotImplementedError
