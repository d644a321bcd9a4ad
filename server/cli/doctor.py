"""What `adapterctl doctor` looks at: environment, store, bases, memory, server.

Imports no engine: versions come from the installed distributions' metadata.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from adapters.errors import AdapterctlError
from adapters.models import BaseRecord
from adapters.registry import reader
from adapters.registry.opening import check_store
from adapters.store.layout import StoreLayout
from server.cli.doctor_environment import environment
from server.cli.doctor_server import server
from server.gateway.admin_models import Check

# Below this a registration may fail half-way; below the first, it certainly does.
_LITTLE_DISK = 1024**3
_NO_DISK = 64 * 1024**2


def examine(root: Path) -> list[Check]:
    """Every check on this machine and on the store at `root`; never raises."""
    return [*environment(), *_store(root), *server(root)]


def _store(root: Path) -> Iterator[Check]:
    layout = StoreLayout(root)
    try:
        check_store(layout)
    except AdapterctlError as error:
        yield Check(check="store", state="problem", found=error.message, fix=_opening_fix(error))
        return
    yield Check(check="store", state="ok", found=f"{root} opens")
    try:
        with reader.reading(root) as connection:
            yield _integrity(connection)
            yield _journal(connection)
            bases = list(reader.load_bases(connection).values())
    except AdapterctlError as error:
        yield Check(
            check="registry",
            state="problem",
            found=error.message,
            fix="put back a copy of registry.db from before, then run `adapterctl verify`",
        )
        return
    yield _disk(root)
    if not bases:
        yield Check(
            check="bases",
            state="warning",
            found="no base is registered",
            fix="register one: adapterctl base add NAME DIR",
        )
    for base in bases:
        yield _base(base)


def _opening_fix(error: AdapterctlError) -> str:
    if error.code == "store_not_found":
        return "make one with `adapterctl init`, or name another with --store"
    if error.code == "store_too_new":
        return "upgrade adapterctl to the version that made the store"
    return "see the message; `adapterctl verify` tells what else is damaged"


def _integrity(connection: sqlite3.Connection) -> Check:
    problems = reader.integrity_problems(connection)
    if not problems:
        return Check(check="registry", state="ok", found="its integrity check passes")
    return Check(
        check="registry",
        state="problem",
        found="; ".join(problems[:3]),
        fix="put back a copy of registry.db from before, then run `adapterctl verify`",
    )


def _journal(connection: sqlite3.Connection) -> Check:
    mode = str(connection.execute("PRAGMA journal_mode").fetchone()[0])
    if mode == "wal":
        return Check(check="registry journal", state="ok", found="write-ahead log")
    return Check(
        check="registry journal",
        state="warning",
        found=f"journal mode '{mode}', not 'wal': readers and writers block each other",
        fix="keep the store on a local disk: network file systems do not support WAL",
    )


def _disk(root: Path) -> Check:
    free = shutil.disk_usage(root).free
    found = f"{free / 1024**3:.1f} GiB free"
    if free >= _LITTLE_DISK:
        return Check(check="disk", state="ok", found=found)
    return Check(
        check="disk",
        state="problem" if free < _NO_DISK else "warning",
        found=f"only {found}",
        fix=f"free space on the disk of {root}; `adapterctl gc` removes what nothing uses",
    )


def _base(base: BaseRecord) -> Check:
    from adapters.bases.digest import base_digest

    name = f"base {base.name}"
    try:
        unchanged = base_digest(Path(base.path)) == base.digest
    except AdapterctlError as error:
        return Check(
            check=name,
            state="problem",
            found=error.message,
            fix=f"put the model back to {base.path}, or tell where it is now: "
            f"adapterctl base add {base.name} DIR",
        )
    if unchanged:
        return Check(check=name, state="ok", found=f"{base.path} is what was registered")
    return Check(
        check=name,
        state="problem",
        found=f"{base.path} is not what was registered any more",
        fix="put the original model back, or register this one under another name",
    )
