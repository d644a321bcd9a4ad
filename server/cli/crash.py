"""When adapterctl itself is at fault, or cannot even be imported. Standard library only."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path


def write_crash_log(store: Path | None, error: BaseException) -> Path | None:
    """Append the traceback to STORE/logs/cli.log, or to a new file among the temporary ones.

    Returns the file, or None when nothing can be written.
    """
    text = "".join(
        [
            f"--- {datetime.now(UTC).isoformat(timespec='seconds')} {' '.join(sys.argv)}\n",
            *traceback.format_exception(error),
        ]
    )
    if store is not None and (store / "logs").is_dir():
        file = store / "logs" / "cli.log"
        try:
            with file.open("a", encoding="utf-8", errors="backslashreplace") as log:
                log.write(text)
        except OSError:
            pass  # a store that is read only: the temporary directory is the second choice
        else:
            return file
    try:
        with tempfile.NamedTemporaryFile(
            "w",
            prefix="adapterctl-",
            suffix=".log",
            delete=False,
            encoding="utf-8",
            errors="backslashreplace",
        ) as temporary:
            temporary.write(text)
    except OSError:
        return None
    return Path(temporary.name)


def what_shadows_us(error: ImportError) -> str:
    """Why our own packages cannot be imported: mostly another distribution's `adapters`."""
    for name in ("adapters", "server"):
        own = (Path(__file__).parents[2] / name).resolve()
        spec = importlib.util.find_spec(name)
        for place in (spec.submodule_search_locations or ()) if spec is not None else ():
            if Path(place).resolve() != own:
                return (
                    f"{place} is in the way of adapterctl's own package '{name}': uninstall the "
                    "distribution it belongs to, or make a fresh environment"
                )
    return f"the installation is damaged ({error}): make a fresh environment"
