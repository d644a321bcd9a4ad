"""Several processes on one store at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from adapters.catalog import Catalog
from tests.adapters.registry.small_intake import write_source

ROOT = Path(__file__).parents[3]

REGISTER = """
import sys
from pathlib import Path
from adapters.catalog import Catalog
from tests.adapters.registry.small_intake import SmallIntake
import adapters.registry.versions, adapters.registry.registering
store, name, tag, *sources = sys.argv[1:]
with Catalog.open(Path(store), intake=SmallIntake()) as catalog:
    sys.stdin.readline()
    for source in sources:
        catalog.register(source, name=name, base="small", tag=tag)
"""

COLLECT = """
import sys
from pathlib import Path
from adapters.catalog import Catalog
with Catalog.open(Path(sys.argv[1])) as catalog:
    sys.stdin.readline()
    for _ in range(int(sys.argv[2])):
        catalog.gc()
"""


def start(script: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def run_together(children: list[subprocess.Popen[bytes]]) -> None:
    for child in children:
        assert child.stdin is not None
        child.stdin.write(b"go\n")
        child.stdin.flush()
    for child in children:
        _, stderr = child.communicate(timeout=120)
        assert child.returncode == 0, stderr.decode()


def test_two_processes_register_under_the_same_name(catalog: Catalog, tmp_path: Path) -> None:
    sources = [str(write_source(tmp_path / f"s{i}", i)) for i in range(12)]
    store = str(catalog.layout.root)
    # The middle four are the same content in both.
    run_together(
        [
            start(REGISTER, store, "bot", "left", *sources[:8]),
            start(REGISTER, store, "bot", "right", *reversed(sources[4:])),
        ]
    )
    record = catalog.adapter("bot")
    assert sorted(record.versions) == list(range(1, 13))
    assert len({v.digest for v in record.versions.values()}) == 12
    manifests = {n: catalog.version_manifest(f"bot:v{n}").source for n in record.versions}
    assert manifests[record.tags["left"]] == sources[7]
    assert manifests[record.tags["right"]] == sources[4]
    assert record.tags["latest"] in (record.tags["left"], record.tags["right"])
    assert catalog.verify().ok


def test_different_names_and_gc_at_the_same_time(catalog: Catalog, tmp_path: Path) -> None:
    sources = [str(write_source(tmp_path / f"s{i}", i)) for i in range(10)]
    store = str(catalog.layout.root)
    run_together(
        [
            start(REGISTER, store, "one", "t", *sources),
            start(REGISTER, store, "two", "t", *sources),
            start(COLLECT, store, "15"),
        ]
    )
    assert [len(a.versions) for a in catalog.adapters()] == [10, 10]
    report = catalog.verify()
    assert (report.problems, report.orphans, report.blobs) == ((), (), 10)
    assert list(catalog.layout.staging.iterdir()) == []
