"""YAML that trainers write beside an adapter, read as data only."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from adapters.errors import InvalidConfig, SourceUnreadable

_MAX_BYTES = 1_000_000


class _NoAliases(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Plain data without aliases: no trainer needs them, and nested ones explode."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("it has aliases")
        return super().compose_node(parent, index)


def read_yaml(path: Path, needed_for: str) -> dict[str, Any]:
    """The mapping in `path`; raises InvalidConfig or SourceUnreadable."""
    name = path.name
    try:
        if not path.is_file():
            raise InvalidConfig(f"{path.parent} has no {name}; without it {needed_for} are unknown")
        if path.stat().st_size > _MAX_BYTES:
            raise InvalidConfig(f"{name} is larger than {_MAX_BYTES} bytes; that is no config")
        value = parse_yaml(path.read_bytes())
    except OSError as fault:
        raise SourceUnreadable(f"cannot read {path}: {fault.strerror or fault}") from fault
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as fault:
        said = " ".join(str(fault).split())[:120]
        raise InvalidConfig(f"{name} is not valid YAML: {said}") from None
    if not isinstance(value, dict):
        raise InvalidConfig(f"{name} holds a {type(value).__name__}, not settings by name")
    return value


def parse_yaml(data: bytes) -> Any:
    """Plain data; raises yaml.YAMLError, ValueError, TypeError or RecursionError."""
    return yaml.load(data, _NoAliases)  # a SafeLoader


def whole_number(settings: Mapping[str, Any], key: str, file: str) -> int:
    """A number above 0 out of `file`; raises InvalidConfig."""
    value = settings.get(key)
    if type(value) is not int or not 0 < value < 1 << 31:
        raise InvalidConfig(
            f"{key} in {file} is {reprlib.repr(value)}; it must be a number above 0"
        )
    return value
