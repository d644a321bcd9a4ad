"""How the tests are shared out when several processes run them (`make test` uses two)."""

from __future__ import annotations

from pathlib import Path

import pytest

_HERE = Path(__file__).parent
# One engine for the whole session, so one process runs all that need it.
_ENGINE = _HERE / "engine"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file together, for the fixtures that they share.

    First: xdist reads the marks in the same hook.
    """
    for item in items:
        engine = _ENGINE in item.path.parents
        group = "engine" if engine else str(item.path.relative_to(_HERE))
        item.add_marker(pytest.mark.xdist_group(group))
