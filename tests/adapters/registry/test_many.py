"""Ten thousand adapters in the registry."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Table, insert

from adapters.catalog import Catalog
from adapters.registry import schema
from adapters.registry.snapshot import SnapshotWatcher
from adapters.registry.writer import RegistryWriter

COUNT = 10_000


def fill(root: Path) -> None:
    """Rows in bulk: what ten thousand registrations leave; loadtests/bench_registry makes them
    one by one."""
    numbers = range(1, COUNT + 1)
    at = datetime.now(UTC).isoformat()
    common = {
        "number": 1,
        "base_id": 1,
        "format": "peft",
        "method": "lora",
        "lane": "hot",
        "rank": 4,
        "size_bytes": 1,
        "manifest": "{}",
        "registered_at": at,
    }
    rows: dict[Table, list[dict[str, object]]] = {
        schema.adapters: [
            {"id": n, "name": f"tenant-{n}", "default_tag": "latest"} for n in numbers
        ],
        schema.numbers: [{"name": f"tenant-{n}", "last": 1} for n in numbers],
        schema.versions: [
            {"id": n, "adapter_id": n, "digest": digest_of(n), **common} for n in numbers
        ],
        schema.tags: [
            {"adapter_id": n, "tag": tag, "version_id": n}
            for n in numbers
            for tag in ("latest", "prod")
        ],
        schema.changes: [{"name": f"tenant-{n}"} for n in numbers],
    }
    writer = RegistryWriter(root)
    with writer.transaction() as connection:
        for table, values in rows.items():
            connection.execute(insert(table), values)
    writer.close()


def digest_of(number: int) -> str:
    return f"sha256:{hashlib.sha256(str(number).encode()).hexdigest()}"


def test_ten_thousand_adapters(catalog: Catalog, register: Callable[..., str]) -> None:
    fill(catalog.layout.root)
    start = time.perf_counter()
    listed = catalog.adapters()
    assert time.perf_counter() - start < 3.0
    assert len(listed) == COUNT
    assert [a.name for a in listed] == sorted(f"tenant-{n}" for n in range(1, COUNT + 1))
    watcher = SnapshotWatcher(catalog.layout.root)
    watcher.start()
    try:
        before = watcher.current
        start = time.perf_counter()
        for number in range(10, COUNT + 1, 10):
            found = before.resolve(f"tenant-{number}:prod").version
            assert found is not None and found.number == 1
        # Microseconds: a bound that only a database read or a scan would break.
        assert (time.perf_counter() - start) / (COUNT / 10) < 100e-6
        catalog.tag("tenant-77:canary", "v1")
        start = time.perf_counter()
        after = watcher.refresh()
        assert time.perf_counter() - start < 0.2
        assert after.adapters["tenant-77"].tags["canary"] == 1
        assert after.adapters["tenant-78"] is before.adapters["tenant-78"]
        assert register(1, name="tenant-78", tag="prod") == "v2"
        seen = watcher.refresh().resolve("tenant-78").version
        assert seen is not None and seen.number == 2
    finally:
        watcher.stop()
    assert len(catalog.gc(dry_run=True).blobs) == 0
