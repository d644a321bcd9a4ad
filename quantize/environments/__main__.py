"""`python -m quantize.environments [NAME…]`: make environments ahead of time, all by default."""

from __future__ import annotations

import sys

from adapters.errors import AdapterctlError
from quantize.environments.making import ensure
from quantize.environments.table import ENVIRONMENTS
from quantize.merging.merge import Watcher


def main(names: list[str]) -> int:
    """Make each; 0, or the exit code of what went wrong, said in one line on stderr."""
    watch = Watcher(step=lambda text: print(f"== {text}", flush=True))  # noqa: T201
    try:
        for name in names or [row.name for row in ENVIRONMENTS]:
            watch.step(f"{name}: {ensure(name, watch)}")
    except AdapterctlError as error:
        print(f"adapterctl: {error.message}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
