"""`python -m server.vllm_plugin.native`: compile at set-up rather than at an engine's start."""

from __future__ import annotations

import sys

from server.vllm_plugin.native.builder import NotBuiltError, library_path


def main() -> None:
    """One line about what is there. Never fails: without a compiler, torch does the work."""
    try:
        line = f"kernels: {library_path()}"
    except NotBuiltError as error:
        line = f"kernels: torch's, since {error}"
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
