"""A clock that jumps: everything that waits, times out or is due is measured on a clock that nobody
sets; the wall clock only says to people when something was."""

from __future__ import annotations

import ast
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from adapters.catalog import Catalog
from adapters.registry import rows
from tests.adapters.registry.small_intake import SmallIntake, write_base, write_source

ROOT = Path(__file__).parents[2]
# Who reads the wall clock in the server, and what for. A line that is not here has to say why.
WALL_CLOCK = {
    "server/cli/commands/audit.py": "what --since 3d means, said by a person",
    "server/cli/commands/keys.py": "when a key ends: a day of the calendar, said by a person",
    "server/cli/commands/store.py": "what --audit-older-than 90d means",
    "server/gateway/background.py": "how old the jobs are, in metrics",
    "server/gateway/picker_metrics.py": "the time of a sample, as its format wants it",
    "server/cli/crash.py": "the line of a crash report",
    "server/cli/commands/jobs.py": "how old a job is, for people",
    "server/engine/engines.py": "since when, for people",
    "server/engine/merged.py": "since when, for people",
    "server/engine/supervisor.py": "since when, for people",
    "server/gateway/top.py": "the time of a picture; advice on pins, never below 15 minutes",
}
_READS = {("time", "time"), ("datetime", "now"), ("datetime", "utcnow"), ("date", "today")}


def reads_wall_clock(source: str) -> bool:
    return any(
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in _READS
        for node in ast.walk(ast.parse(source))
    )


def test_nothing_in_the_server_is_decided_by_the_wall_clock() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "server").rglob("*.py")
        if reads_wall_clock(path.read_text(encoding="utf-8"))
    }
    assert found == set(WALL_CLOCK)


@pytest.mark.parametrize("jump", [timedelta(days=-4000), timedelta(days=4000)])
def test_a_history_stays_in_the_order_in_which_it_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: timedelta
) -> None:
    """Rows are ordered by their numbers: what came later comes later, whatever the clock said."""

    class Jumped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Jumped:
            moved = datetime.now(tz) + jump
            return cls.fromtimestamp(moved.timestamp(), tz)

    with Catalog.init(tmp_path / "store", intake=SmallIntake()) as catalog:
        catalog.base_add("small", write_base(tmp_path / "small"))
        for seed in (1, 2, 3):
            catalog.register(
                str(write_source(tmp_path / f"{seed}", seed)), name="bot", base="small"
            )
            monkeypatch.setattr(rows, "datetime", Jumped)
        catalog.tag("bot:prod", "v1")
        catalog.tag("bot:prod", "v3")
        catalog.rollback("bot:prod")
        moves = [change.new for change in catalog.history("bot") if change.tag == "latest"]
        assert moves == [1, 2, 3]
        times = [change.at for change in catalog.history("bot") if change.tag == "latest"]
        assert (times[0] < times[1]) is (jump > timedelta(0))
        assert catalog.adapter("bot").tags == {"latest": 3, "prod": 1}
        assert catalog.verify().ok
