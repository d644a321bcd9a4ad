"""Routes: what is said of a tag's requests, who takes it back, and what tags and removals do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.catalog import Catalog
from adapters.errors import AdapterNotFound, InUse, StoreDamaged, TagNotFound, UsageError
from adapters.frozen import Lane
from adapters.lanes.models import Limits, Route, Shadow, Split
from adapters.registry.snapshot import SnapshotWatcher
from tests.adapters.registry.models_at_hand import merged
from tests.adapters.registry.test_opening import sql

Register = Callable[..., str]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def bot(catalog: Catalog, register: Register) -> Catalog:
    """`bot` with v1 to v4; prod means v3."""
    for seed in range(1, 5):
        register(seed)
    catalog.tag("bot:prod", "v3")
    return catalog


def changes(catalog: Catalog) -> list[tuple[str, str, str | None, str | None]]:
    return [(c.kind, c.subject, c.old, c.new) for c in catalog.lane_history("bot")]


def test_a_route_is_in_the_snapshot_of_other_processes(bot: Catalog) -> None:
    watcher = SnapshotWatcher(bot.layout.root)
    watcher.start()
    route = bot.route("bot:prod", splits=["v4=5%"], shadows=["v1=10%"], sticky="user", actor="ann")
    assert watcher.refresh().adapters["bot"].routes == {"prod": route}
    assert (route.splits, route.shadows, route.sticky, route.actor) == (
        (Split(number=4, share=0.05),),
        (Shadow(number=1, share=0.1),),
        "user",
        "ann",
    )
    assert route.limits == Limits()
    assert bot.routes() == [route] == list(bot.adapter("bot").routes.values())
    assert bot.unroute("bot:prod") == route
    assert watcher.refresh().adapters["bot"].routes == {}
    assert bot.unroute("bot:prod") is None
    watcher.stop()
    assert changes(bot) == [
        ("route", "prod", None, "v4 5 %, shadow v1 10 %, by user"),
        ("route", "prod", "v4 5 %, shadow v1 10 %, by user", None),
    ]
    assert [c.reason for c in bot.lane_history("bot")] == ["route", "cleared"]


def test_every_change_has_an_id_of_its_own(bot: Catalog) -> None:
    first = bot.route("bot:prod", splits=["v4=5%"])
    assert bot.route("bot:prod", splits=["v4=5%"]) == first
    watched = bot.route("bot:prod", splits=["v4=5%"], limits=Limits(least=20))
    other = bot.route("bot", splits=["v1=5%"], limits=None)
    bot.unroute("bot")
    again = bot.route("bot:latest", splits=["v1=5%"], limits=None)
    ids = [route.id for route in (first, watched, other, again)]
    assert ids == sorted(set(ids))
    assert len(changes(bot)) == 5
    assert changes(bot)[-1][3] == "v1 5 %, not watched"


def test_by_header(bot: Catalog) -> None:
    route = bot.route("bot:prod", splits=["v4"], header=("X-Canary", "1"))
    assert route.splits == (Split(number=4, share=0, header=("x-canary", "1")),)
    assert changes(bot)[-1][3] == "v4 0 % and x-canary: 1"


@pytest.mark.parametrize(
    ("ref", "error"),
    [
        ("bot:v3", UsageError),
        ("bot@sha256:00000000", UsageError),
        ("bot:beta", TagNotFound),
        ("nobody", AdapterNotFound),
    ],
)
def test_only_tags_are_routed(bot: Catalog, ref: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        bot.route(ref, splits=["v4=5%"])
    with pytest.raises(error):
        bot.unroute(ref)
    with pytest.raises(UsageError, match="Write v4=5%"):
        bot.route("bot:prod")
    assert changes(bot) == []


def test_a_canary_is_taken_back_once_and_only_under_its_own_route(bot: Catalog) -> None:
    old = bot.route("bot:prod", splits=["v4=5%"])
    route = bot.route("bot:prod", splits=["v4=10%", "v1=5%"], shadows=["v2=1%"])
    back = bot.roll_back_route
    assert not back("bot", "prod", old.id, 4, None, reason="late")
    assert not back("bot", "prod", route.id, 2, None, reason="no such split")
    assert back("bot", "prod", route.id, 4, None, reason="x")
    (now,) = bot.routes()
    assert now.splits == (Split(number=1, share=0.05),) and now.shadows == route.shadows
    assert now.id > route.id
    assert not back("bot", "prod", route.id, 4, None, reason="twice")
    assert not back("gone", "prod", 1, 4, None, reason="x")
    last = bot.lane_history("bot")[-1]
    assert (last.kind, last.actor, last.reason) == ("rollback", "canary", "x")
    assert (last.old, last.new) == (
        "v4 10 %, v1 5 %, shadow v2 1 %",
        "v1 5 %, shadow v2 1 %",
    )


def test_the_lane_tells_which_split_is_taken_back(bot: Catalog, tmp_path: Path) -> None:
    merged(bot, tmp_path, "bot:v4")
    bot.deploy("bot:v4", switch=False)
    route = bot.route("bot:prod", splits=["v4=5%", "v4@merged=7%"])
    assert bot.roll_back_route("bot", "prod", route.id, 4, Lane.MERGED, reason="slow")
    (now,) = bot.routes()
    assert now.splits == (Split(number=4, share=0.05),)
    # Told where it was answered: the split says "where it is deployed", which is there.
    assert not bot.roll_back_route("bot", "prod", route.id, 4, Lane.HOT, reason="slow")
    assert bot.roll_back_route("bot", "prod", now.id, 4, Lane.HOT, reason="slow")
    assert bot.routes() == []


def test_a_promoted_canary_is_no_canary_any_more(bot: Catalog) -> None:
    route = bot.route("bot:prod", splits=["v4=5%", "v1=1%"], shadows=["v4=10%"])
    bot.tag("bot:prod", "v4", actor="ann")
    (now,) = bot.routes()
    assert (now.splits, now.shadows) == ((Split(number=1, share=0.01),), ())
    assert now.id > route.id
    last = bot.lane_history("bot")[-1]
    assert (last.actor, last.reason) == ("ann", "prod now means v4")
    # Rolled back, v4 is not tried again behind anybody's back.
    bot.rollback("bot:prod")
    assert bot.routes()[0].splits == (Split(number=1, share=0.01),)


def test_a_lane_of_the_stable_version_moves_with_the_tag(bot: Catalog, tmp_path: Path) -> None:
    merged(bot, tmp_path, "bot:v3")
    bot.deploy("bot:v3", switch=False)
    route = bot.route("bot:prod", splits=["@merged=10%"])
    assert route.splits == (Split(number=3, lane=Lane.MERGED, share=0.1, follows=True),)
    bot.tag("bot:prod", "v4")
    (now,) = bot.routes()
    assert now.splits == (Split(number=4, lane=Lane.MERGED, share=0.1, follows=True),)
    # What was measured of v3 says nothing of v4; nothing was said that people have to read.
    assert now.id > route.id
    assert changes(bot) == [("route", "prod", None, "@merged 10 %")]


def test_registering_moves_latest_and_its_route(bot: Catalog, register: Register) -> None:
    bot.route("bot", splits=["v1=5%"])
    register(9)
    (now,) = bot.routes()
    assert (now.tag, now.splits) == ("latest", (Split(number=1, share=0.05),))


def test_a_deleted_tag_takes_its_route_with_it(bot: Catalog) -> None:
    bot.route("bot:prod", splits=["v4=5%"])
    bot.delete_tag("bot:prod")
    assert bot.routes() == []
    assert changes(bot)[-1] == ("route", "prod", "v4 5 %", None)


def test_what_is_routed_to_is_not_removed_by_mistake(bot: Catalog) -> None:
    bot.route("bot:prod", splits=["v1=5%", "v2=5%"], shadows=["v1=1%"])
    for ref in ("bot:v1", "bot:v2"):
        with pytest.raises(InUse, match=f"bot:prod is routed to {ref.partition(':')[2]}"):
            bot.rm(ref)
    bot.rm("bot:v1", force=True)
    (now,) = bot.routes()
    assert (now.splits, now.shadows) == ((Split(number=2, share=0.05),), ())
    assert bot.lane_history("bot")[-1].reason == "v1 was removed"
    bot.rm("bot", force=True)
    assert bot.routes() == []
    # The history outlives it.
    assert changes(bot)[-1] == ("route", "prod", "v2 5 %", None)
    assert bot.verify().ok


def test_the_history_of_a_name_that_never_was(bot: Catalog) -> None:
    assert bot.lane_history("bot") == []
    with pytest.raises(AdapterNotFound):
        bot.lane_history("nobody")


CHANGE = """
import sys
from pathlib import Path
from adapters.catalog import Catalog
import adapters.registry.lanes
with Catalog.open(Path(sys.argv[1])) as catalog:
    print(flush=True)
    sys.stdin.readline()
    for share in range(1, 21):
        catalog.route("bot:prod", splits=[f"{sys.argv[2]}={share}%"], actor=sys.argv[2])
"""


def test_of_two_processes_the_last_wins_and_both_are_in_the_history(bot: Catalog) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CHANGE, str(bot.layout.root), target],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for target in ("v1", "v4")
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in processes:
        assert process.wait() == 0
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.stdout.close()
    lines = bot.lane_history("bot")
    assert len(lines) == 40
    assert {actor: sum(c.actor == actor for c in lines) for actor in ("v1", "v4")} == {
        "v1": 20,
        "v4": 20,
    }
    # Each saw what the other had just done, and the last one stands.
    assert [c.old for c in lines[1:]] == [c.new for c in lines[:-1]]
    (now,) = bot.routes()
    assert lines[-1].new == f"v{now.splits[0].number} 20 %"


@pytest.mark.parametrize("column", ["splits", "shadows", "limits"])
def test_a_damaged_route_is_damage_and_no_traceback(bot: Catalog, column: str) -> None:
    bot.route("bot:prod", splits=["v4=5%"])
    bot.close()
    sql(bot.layout.root, f"UPDATE routes SET {column} = '[{{]'")
    with pytest.raises(StoreDamaged):
        bot.routes()
    with pytest.raises(StoreDamaged):
        bot.adapter("bot")


def test_what_is_written_is_what_is_read(bot: Catalog) -> None:
    route = bot.route(
        "bot:prod",
        splits=[Split(number=4, share=0.125, header=("x-canary", "a, b"))],
        shadows=[Shadow(number=1, share=1.0)],
        limits=Limits(window=20, least=5, errors=0.5, slower=1.5, degenerate=1.0),
    )
    assert Route.model_validate_json(route.model_dump_json()) == bot.routes()[0]
