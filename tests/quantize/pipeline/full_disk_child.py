"""In a mount namespace of its own: `full_disk_child DISK BASE`, a store on a small tmpfs at DISK.

The disk fills up while a merge writes; with room again the same job ends as if nothing had been.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from adapters.catalog import Catalog
from adapters.errors import DiskFull
from adapters.jobs.orders import MergeOrder
from quantize.merging.merge import Watcher
from tests.adapters.intake.artifact_builders import adapter_parts, write_parts
from tests.quantize.pipeline.conftest import Works


def main() -> None:
    disk, base = map(Path, sys.argv[1:])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", disk], check=True)
    with Catalog.init(disk / "store") as catalog:
        catalog.base_add("tiny", base)
        write_parts(disk / "adapter", *adapter_parts(catalog.base_descriptor("tiny")))
        catalog.register(str(disk / "adapter"), name="bot", base="tiny")
        works, order, filler = Works(catalog, disk), MergeOrder(reference="bot"), disk / "filler"

        def fill(done: int, total: int) -> None:
            # Shards are written side by side: only this tells that one of them is done.
            if _finished_shards(disk) and not filler.exists():
                with filler.open("wb") as file:
                    try:
                        while True:
                            file.write(bytes(4096))
                            file.flush()
                    except OSError:
                        pass

        try:
            works.merge("one", order, Watcher(progress=fill))
            raise AssertionError("the disk was full")
        except DiskFull as full:
            assert "no space left" in full.message, full.message
        assert [adapter.name for adapter in catalog.adapters()] == ["bot"]
        assert list(catalog.layout.staging.iterdir()) == []
        filler.unlink()
        again = works.merge("one", order)
        assert again.report.shards_resumed > 0
        assert catalog.verify().ok
        undisturbed = works.merge("two", order)
        assert (undisturbed.digest, undisturbed.version) == (again.digest, "v1")


def _finished_shards(disk: Path) -> int:
    states = [json.loads(path.read_text()) for path in disk.rglob(".*.merging/state.json")]
    return sum(len(state["shards"]) for state in states)


if __name__ == "__main__":
    main()
