"""Reading the small files that lie beside weights: bounded, and told apart from damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adapters.errors import InvalidConfig, SourceUnreadable

# tokenizer_config.json of a large vocabulary lists every added token.
_MAX_BYTES = 10_000_000


def read_text(path: Path, limit: int = _MAX_BYTES) -> str | None:
    """The UTF-8 text of a plain file; None if there is none. InvalidConfig, SourceUnreadable."""
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > limit:
            raise InvalidConfig(f"{path.name} is larger than {limit} bytes")
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidConfig(f"{path.name} is not UTF-8") from None
    except OSError as fault:
        raise SourceUnreadable(f"cannot read {path}: {fault.strerror or fault}") from fault


def read_object(path: Path, limit: int = _MAX_BYTES) -> dict[str, Any]:
    """The JSON object in a plain file; {} if there is no file. InvalidConfig, SourceUnreadable."""
    text = read_text(path, limit)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise InvalidConfig(f"{path.name} is not valid JSON: {str(fault)[:120]}") from None
    if not isinstance(value, dict):
        raise InvalidConfig(f"{path.name} holds a {type(value).__name__}, not a JSON object")
    return value
