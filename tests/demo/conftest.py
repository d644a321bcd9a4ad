"""The real base, made once if the checkout has none yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.base import ensure_base


@pytest.fixture(scope="session")
def demo_base() -> Path:
    return ensure_base()
