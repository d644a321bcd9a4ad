"""A merge that gets no further than it is allowed: `merge_child STORE REF OUT BYTES`.

Writes `killing` to stdout and waits to be killed once BYTES of the checkpoint are written.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from adapters.catalog import Catalog
from quantize.merging.merge import Watcher, merge


def main() -> None:
    store, reference, out, allowed = sys.argv[1:]

    def progress(done: int, total: int) -> None:
        if done >= int(allowed):
            sys.stdout.write("killing\n")
            sys.stdout.flush()
            time.sleep(600)

    with Catalog.open(Path(store)) as catalog:
        merge(catalog, reference, Path(out), watch=Watcher(progress=progress))


if __name__ == "__main__":
    main()
