"""Verifying a store: the database, every blob, and the bases' directories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from adapters.errors import AdapterctlError
from adapters.models import BaseRecord
from adapters.registry import reader
from adapters.registry.intake_port import IntakeProtocol, Progress
from adapters.store.layout import StoreLayout
from adapters.store.verify import VerifyReport, verify_blobs


def verify(
    layout: StoreLayout,
    intake: IntakeProtocol,
    listed: Callable[[], Mapping[str, list[str]]],
    progress: Progress | None,
) -> VerifyReport:
    """See `Catalog.verify`."""
    with reader.reading(layout.root) as connection:
        problems = reader.integrity_problems(connection)
        bases = reader.load_bases(connection)
    report = verify_blobs(layout, listed, progress)
    problems.extend(report.problems)
    for base in bases.values():
        problem = _base_problem(base, intake)
        if problem is not None:
            problems.append(f"base '{base.name}': {problem}")
    return replace(report, problems=tuple(problems))


def _base_problem(base: BaseRecord, intake: IntakeProtocol) -> str | None:
    if not Path(base.path).is_dir():
        return (
            f"{base.path} is gone; put it back, or tell where it is now with "
            f"`adapterctl base add {base.name} DIR`"
        )
    try:
        digest = intake.describe_base(Path(base.path)).digest
    except AdapterctlError as error:
        return error.message
    if digest != base.digest:
        return (
            f"{base.path} is another model now; put the old one back, or add the new one under "
            "another name"
        )
    return None
