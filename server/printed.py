"""A configuration for people and machines: what holds, where it comes from, and no secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w

from server.configuration import RELOADED, Configuration
from server.setting_values import masked


def as_toml(configuration: Configuration) -> str:
    """A file that `serve --config` reads back to the same settings.

    What has no value, and what holds a secret, is in a comment.
    """
    plain: list[str] = []
    tables: list[str] = []
    for name, value in _values(configuration):
        lines = _entry(name, value, configuration.origins[name])
        # After the head of a table everything belongs to it.
        (tables if isinstance(value, dict) else plain).append(lines)
    return "\n".join([*plain, *tables])


def as_document(configuration: Configuration) -> dict[str, Any]:
    """Settings and origins as JSON; passwords are masked."""
    values = {name: masked(value) for name, value in _values(configuration)}
    return {"settings": values, "origins": dict(configuration.origins)}


def _values(configuration: Configuration) -> list[tuple[str, Any]]:
    """In the order of the documentation, as plain values."""
    found = configuration.settings.model_dump(mode="json")
    store = configuration.settings.store
    # A file may be read in another directory than it was printed in.
    found["store"] = str(store.resolve() if isinstance(store, Path) else store)
    return list(found.items())


def _entry(name: str, value: Any, origin: str) -> str:
    applies = "" if name not in RELOADED else ", read again on SIGHUP"
    # A file's name may hold a line end.
    comment = f"# {origin}{applies}".replace("\r", " ").replace("\n", " ")
    if value is None:
        return f"{comment}\n# {name} is not set\n"
    if masked(value) != value:
        text = "".join(f"# {line}\n" for line in _toml({name: masked(value)}).splitlines())
        return f"{comment}; a secret, not printed\n{text}"
    return f"{comment}\n{_toml({name: value})}"


def _toml(document: dict[str, Any]) -> str:
    return tomli_w.dumps(_without_none(document))


def _without_none(value: Any) -> Any:
    """TOML has no null: what is not set is left out, at every depth."""
    if isinstance(value, dict):
        return {name: _without_none(one) for name, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_without_none(one) for one in value]
    return value
