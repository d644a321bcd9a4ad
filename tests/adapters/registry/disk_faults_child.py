"""Run by test_disk_faults in a mount namespace of its own: real full and real read-only disks.

argv: a directory to mount on, and the scenario.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from adapters.catalog import Catalog
from adapters.errors import AdapterctlError, DiskFull, StoreReadOnly
from adapters.store.leases import EngineLease
from tests.adapters.registry.small_intake import SmallIntake, write_base, write_source


def main() -> None:
    """Runs one scenario; an AssertionError or a foreign exception fails the test."""
    mount, scenario = Path(sys.argv[1]), sys.argv[2]
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", mount], check=True)
    sources = [str(write_source(mount.parent / f"source-{i}", i)) for i in range(40)]
    base = write_base(mount.parent / "small")
    with Catalog.init(mount / "store", intake=SmallIntake()) as catalog:
        catalog.base_add("small", base)
        catalog.register(sources[0], name="bot", base="small")
        if scenario == "full":
            full_disk(catalog, mount, sources)
        else:
            assert scenario in ("read-only", "read-only-after-crash")
            if scenario == "read-only":
                catalog.close()
            read_only_disk(catalog, mount, sources)


def full_disk(catalog: Catalog, mount: Path, sources: list[str]) -> None:
    ballast = mount / "ballast"
    failures = 0
    # Less and less ballast: the disk gets full at each step of registering in turn.
    for size in range(2 << 20, 0, -8192):
        fill(ballast, size)
        before = catalog.adapters()
        try:
            catalog.register(sources[1 + failures % 3], name="bot", base="small", tag="prod")
        except DiskFull:
            failures += 1
        else:
            break
        assert catalog.adapters() == before
        assert list(catalog.layout.staging.iterdir()) == []
    assert failures >= 3, failures
    ballast.unlink()
    for source in sources[:4]:
        catalog.register(source, name="bot", base="small")
    assert catalog.verify().ok, catalog.verify().problems
    catalog.gc()
    assert catalog.verify().orphans == ()


def fill(path: Path, size: int) -> None:
    path.unlink(missing_ok=True)
    with path.open("wb", buffering=0) as file:
        try:
            while size > 0:
                size -= file.write(b"\0" * min(size, 4096))
        except OSError:
            return


def read_only_disk(catalog: Catalog, mount: Path, sources: list[str]) -> None:
    # remount,ro wants no open file for writing; a lazy bind of the same tree does not.
    read_only = mount.parent / "read-only"
    read_only.mkdir()
    subprocess.run(["mount", "--bind", mount, read_only], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", read_only], check=True)
    assert not os.access(read_only, os.W_OK)
    with Catalog.open(read_only / "store", intake=SmallIntake()) as frozen:
        assert [a.name for a in frozen.adapters()] == ["bot"]
        assert frozen.snapshot().resolve("bot").version is not None
        assert frozen.verify().ok
        for attempt in (
            lambda: frozen.register(sources[1], name="bot", base="small"),
            lambda: frozen.tag("bot:prod", "v1"),
            lambda: frozen.rm("bot", force=True),
            lambda: frozen.create_key(["admin"], "x"),
            frozen.gc,
            lambda: EngineLease(frozen.layout, "engine").acquire(),
            lambda: Catalog.init(read_only / "other"),
        ):
            try:
                attempt()
            except StoreReadOnly as error:
                assert "cannot be written" in error.message
            except AdapterctlError as error:
                raise AssertionError(f"not StoreReadOnly but {error!r}") from error
            else:
                raise AssertionError("a write to a read-only disk went through")


if __name__ == "__main__":
    main()
