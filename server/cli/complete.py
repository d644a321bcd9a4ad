"""What the shell may complete: names, tags and versions that exist.

Runs at every press of TAB, so it never fails and never waits long: no store, no suggestions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from adapters.errors import AdapterctlError
from adapters.frozen import Lane
from adapters.jobs.models import JobRecord
from adapters.models import AdapterRecord, BaseRecord
from server.cli.session import session_of

if TYPE_CHECKING:
    from server.gateway.key_models import KeyShown


def base_names(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of bases."""
    return [
        CompletionItem(base.name, help=base.architecture)
        for base in _bases(context)
        if base.name.startswith(incomplete)
    ]


def adapter_names(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of adapters."""
    return [
        CompletionItem(adapter.name)
        for adapter in _adapters(context)
        if adapter.name.startswith(incomplete)
    ]


def references(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """NAME, and once a colon is there, NAME:TAG and NAME:vN."""
    name, colon, _ = incomplete.partition(":")
    if not colon:
        return adapter_names(context, parameter, incomplete)
    found = [adapter for adapter in _adapters(context) if adapter.name == name]
    labels = [label for adapter in found for label in (*sorted(adapter.tags), *_labels(adapter))]
    return [
        CompletionItem(f"{name}:{label}")
        for label in labels
        if f"{name}:{label}".startswith(incomplete)
    ]


def route_targets(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Versions and tags of the adapter whose traffic is split."""
    name = str(context.params.get("reference") or "").partition(":")[0]
    found = [adapter for adapter in _adapters(context) if adapter.name == name]
    labels = [label for adapter in found for label in (*_labels(adapter), *sorted(adapter.tags))]
    targets = [*labels, *(f"{label}@{lane}" for label in labels for lane in Lane), "@merged"]
    return [CompletionItem(f"{it}=") for it in targets if f"{it}=".startswith(incomplete)]


def job_ids(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Ids of jobs, the newest first."""
    return [
        CompletionItem(job.id, help=f"{job.kind} {job.order.reference}, {job.state}")
        for job in reversed(_jobs(context))
        if job.id.startswith(incomplete)
    ]


def key_ids(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Ids of the keys that can be used."""
    return [
        CompletionItem(key.id, help=f"{key.tenant}: {key.label}")
        for key in _keys(context)
        if key.revoked_at is None and key.id.startswith(incomplete)
    ]


def _labels(adapter: AdapterRecord) -> list[str]:
    return [f"v{number}" for number in sorted(adapter.versions)]


def _adapters(context: click.Context) -> list[AdapterRecord]:
    try:
        return list(session_of(context).backend().adapters())
    except (AdapterctlError, OSError):
        return []


def _bases(context: click.Context) -> list[BaseRecord]:
    try:
        return list(session_of(context).backend().bases())
    except (AdapterctlError, OSError):
        return []


def _jobs(context: click.Context) -> list[JobRecord]:
    try:
        return list(session_of(context).backend().jobs())
    except (AdapterctlError, OSError):
        return []


def _keys(context: click.Context) -> list[KeyShown]:
    try:
        return list(session_of(context).backend().keys())
    except (AdapterctlError, OSError):
        return []
