"""Finding, in an engine's log, the line that says why it failed."""

from __future__ import annotations

import pytest

from server.engine.process import failure_cause

PYDANTIC = """\
  File "x.py", line 10, in __init__
pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, the context is too long. [type=value_error, input_value=ArgsKwargs()]
    For further information visit a page
"""
CORE = """\
(EngineCore pid=11544) ERROR 11-22 00:13:22 [core.py:99] Traceback (most recent call last):
(EngineCore pid=11544) ERROR 11-22 00:13:22 [core.py:99] ValueError: no memory for the KV cache
(APIServer pid=11494) RuntimeError: Engine core initialization failed. See root cause above.
"""


@pytest.mark.parametrize(
    ("tail", "cause"),
    [
        (PYDANTIC, "Value error, the context is too long."),
        (CORE, "ValueError: no memory for the KV cache"),
        ("all is well\nKilled\n", "Killed"),
        ("", "its log is empty"),
    ],
)
def test_the_telling_line_is_found(tail: str, cause: str) -> None:
    assert failure_cause(tail) == cause
