"""A manifest to change in tests."""

from __future__ import annotations

from typing import Any

from adapters.frozen import Lane
from adapters.models import Manifest


def manifest(**fields: Any) -> Manifest:
    values: dict[str, Any] = {
        "format": "peft",
        "method": "LoRA",
        "lane": Lane.HOT,
        "reasons": (),
        "rank": 4,
        "targets": ("q_proj",),
        "parameters": 10,
        "scale": "1",
        "base_digest": "sha256:" + "0" * 64,
        "base_by_trainer": None,
        "trainer": None,
        "trainer_version": None,
        "source": "/somewhere",
        "source_sha256": "0" * 64,
    }
    return Manifest(**{**values, **fields})
