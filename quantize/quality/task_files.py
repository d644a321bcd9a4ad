"""What a task file of lm-evaluation-harness says, as far as it is known without the harness."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.errors import UsageError

# How the harness calls what it asks for; all but the first are scored.
_GENERATES = "generate_until"
_OUTPUT_TYPES = (_GENERATES, "multiple_choice", "loglikelihood", "loglikelihood_rolling")
# Readers of files that the library `datasets` has built in: no network, no code of others.
_READERS = ("json", "csv", "parquet", "text", "arrow")


@dataclass(frozen=True, slots=True)
class TaskFile:
    """One task: its name, and whether its answers are generated or only scored."""

    path: Path
    name: str
    generates: bool


def read_task(path: Path) -> TaskFile:
    """The task in the YAML file `path`. Raises UsageError."""
    document = _document(path, ())
    name = document.get("task")
    if "group" in document or not isinstance(name, str) or not name:
        raise UsageError(
            f"{path} describes no single task: `task` is its name; for a group, name the files of "
            "its tasks"
        )
    output = document.get("output_type", _GENERATES)
    if output not in _OUTPUT_TYPES:
        raise UsageError(
            f"{path} has the output_type '{output}': there are {', '.join(_OUTPUT_TYPES)}"
        )
    _check_data(path, document)
    return TaskFile(path.absolute(), name, output == _GENERATES)


def _document(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The file's settings, over those of the files it includes."""
    import yaml

    # Functions are found by the harness.
    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    path = path.absolute()
    if path in seen:
        raise UsageError(f"{seen[0]} includes itself")
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError) as fault:
        reason = getattr(fault, "strerror", None) or "it is no text"
        raise UsageError(f"the task file {path} cannot be read: {reason}") from None
    except yaml.YAMLError as fault:
        said = " ".join(str(fault).split())
        raise UsageError(f"the task file {path} is no YAML: {said}") from None
    if not isinstance(document, dict):
        raise UsageError(f"the task file {path} is no table of settings")
    includes = document.pop("include", [])
    merged: dict[str, Any] = {}
    for include in includes if isinstance(includes, list) else [includes]:
        merged |= _document(path.parent / str(include), (*seen, path))
    return merged | document


def _check_data(path: Path, document: dict[str, Any]) -> None:
    """The data is local: a built-in reader with files, a directory, or a function beside it."""
    if document.get("custom_dataset") or document.get("class"):
        return
    source = document.get("dataset_path")
    if not isinstance(source, str):
        raise UsageError(f"{path} names no data: give dataset_path, or custom_dataset")
    beside = path.absolute().parent
    if source not in _READERS:
        if not (beside / source).is_dir():
            raise UsageError(
                f"{path} takes its data from '{source}', which is no directory beside it: task "
                f"files read local data only (dataset_path: {', '.join(_READERS)}, with data_files)"
            )
        return
    named = (document.get("dataset_kwargs") or {}).get("data_files")
    if not named:
        raise UsageError(f"{path} names no data: give dataset_kwargs.data_files")
    for file in _listed(named):
        if not (beside / file).exists() and not any(beside.glob(file.lstrip("/"))):
            raise UsageError(f"{path} names the data file '{file}', which is not there")


def _listed(named: Any) -> list[str]:
    if isinstance(named, dict):
        return [file for value in named.values() for file in _listed(value)]
    return [str(file) for file in named] if isinstance(named, list) else [str(named)]
