"""`python -m demo.prepare --store DIR`: a store with the demo base and its three adapters.

Idempotent: a note in the store, `demo.json`, says which files became which versions. While the
registry still has them a second run only reads, and imports no tensor library.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from adapters.catalog import Catalog
from adapters.errors import AdapterctlError, NotFound, StoreError
from demo.base import DEFAULT_BASE, ensure_base
from demo.expectations import EXPECTATIONS

ARTIFACTS: Final = Path(__file__).resolve().parent / "artifacts"
BASE_NAME: Final = "smollm2"
NOTE: Final = "demo.json"

Say = Callable[[str], None]


def prepare(store: Path, *, base: Path = DEFAULT_BASE, say: Say = print) -> None:
    """Make sure `store` exists and has the base `smollm2` and every demo adapter.

    Versions and tags that are there already stay as they are; so does anything else in the store.
    Raises AdapterctlError.
    """
    started = time.monotonic()

    def progress(text: str) -> None:
        say(f"demo [{time.monotonic() - started:4.1f} s] {text}")

    directory = ensure_base(base, say=say)
    with Catalog.init(store) as catalog:
        note = _read_note(store / NOTE)
        made_of = _digest_of(directory, ("conversion.json",))
        if note.get(BASE_NAME) != made_of or not _has_base(catalog, directory):
            progress(f"registering the base {BASE_NAME}")
            record = catalog.base_add(BASE_NAME, directory)
            note[BASE_NAME] = made_of
            _write_note(store / NOTE, note)
            progress(f"{BASE_NAME}: {record.architecture}, {record.digest}")
        for name in EXPECTATIONS:
            folder = ARTIFACTS / name
            digest = _digest_of(folder, ("adapter_config.json", "adapter_model.safetensors"))
            if _has_version(catalog, name, note.get(f"{name} {digest}")):
                continue
            progress(f"registering the adapter {name}")
            made = catalog.register(str(folder), name=name, base=BASE_NAME, actor="demo")
            note[f"{name} {digest}"] = made.digest
            _write_note(store / NOTE, note)
            progress(f"{name}: {made.version}, {made.method}, lane {made.lane}, {made.digest}")
        progress(f"ready: {BASE_NAME} and {', '.join(EXPECTATIONS)} in {store}")


def _has_base(catalog: Catalog, directory: Path) -> bool:
    try:
        return Path(catalog.base(BASE_NAME).path) == directory
    except NotFound:
        return False


def _has_version(catalog: Catalog, name: str, digest: str | None) -> bool:
    if digest is None:
        return False
    try:
        versions = catalog.adapter(name).versions.values()
    except NotFound:
        return False
    return any(version.digest == digest for version in versions)


def _digest_of(folder: Path, names: tuple[str, ...]) -> str:
    total = hashlib.sha256()
    for name in names:
        try:
            total.update(hashlib.sha256((folder / name).read_bytes()).digest())
        except OSError as error:
            raise StoreError(
                f"The demo's {folder.name}/{name} cannot be read ({error.strerror}); restore the "
                "checkout with `git checkout demo`."
            ) from error
    return total.hexdigest()


def _read_note(path: Path) -> dict[str, str]:
    """The note; empty when there is none or it says nothing usable: then all is done again."""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        return {str(key): str(value) for key, value in note.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _write_note(path: Path, note: dict[str, str]) -> None:
    text = json.dumps(note, indent=2, sort_keys=True) + "\n"
    staged = path.with_name(f"{path.name}.new")
    try:
        staged.write_text(text, encoding="utf-8")
        staged.replace(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}; free it.") from error


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo.prepare", description=__doc__)
    parser.add_argument("--store", type=Path, required=True, help="made if it is not there")
    parser.add_argument("--base", type=Path, default=DEFAULT_BASE, help="where the base is made")
    options = parser.parse_args(arguments)
    try:
        prepare(options.store, base=options.base, say=lambda line: print(line, flush=True))
    except AdapterctlError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; run it again, it goes on from there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
