"""Quarantines in the registry: which versions, what becomes of routes, who lifts them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from adapters.catalog import Catalog
from adapters.errors import AdapterNotFound, NotFound, Quarantined
from adapters.frozen import Lane
from adapters.lanes.models import Split
from adapters.registry.snapshot import SnapshotWatcher

Register = Callable[..., str]


@pytest.fixture
def bot(catalog: Catalog, register: Register) -> Catalog:
    """`bot` with v1 to v3; `twin` has the content of bot:v2."""
    for seed in (1, 2, 3):
        register(seed)
    register(2, name="twin")
    catalog.tag("bot:prod", "v1")
    return catalog


def lines(catalog: Catalog, name: str = "bot") -> list[tuple[str, str, str | None, str | None]]:
    return [(c.kind, c.subject, c.old, c.new) for c in catalog.lane_history(name)]


def test_it_holds_for_the_content_and_is_in_other_processes_until_lifted(bot: Catalog) -> None:
    watcher = SnapshotWatcher(bot.layout.root)
    watcher.start()
    bot.pin("bot:v2", True)
    made = bot.quarantine("bot:v2", "it said NaN", actor="engine")
    assert (made.adapter, made.number, made.quarantined) == ("bot", 2, "it said NaN")
    # How it is served besides is kept.
    assert (made.lane, made.pinned) == (Lane.HOT, True)
    adapters = watcher.refresh().adapters
    assert adapters["bot"].deployments[2].quarantined == "it said NaN"
    assert adapters["twin"].deployments[1].quarantined == "it said NaN"
    assert set(adapters["bot"].deployments) == {2}
    # The first reason stands, and says nothing again.
    assert bot.quarantine("twin", "another").quarantined == "it said NaN"
    lifted = bot.lift("twin", actor="ann")
    assert (lifted.adapter, lifted.quarantined, lifted.actor) == ("twin", None, "ann")
    adapters = watcher.refresh().adapters
    assert adapters["bot"].deployments[2].quarantined is None
    assert adapters["bot"].deployments[2].pinned
    watcher.stop()
    assert lines(bot)[1:] == [
        ("quarantine", "v2", "hot, pinned", "hot, pinned, quarantined"),
        ("lift", "v2", "hot, pinned, quarantined", "hot, pinned"),
    ]
    assert [c.reason for c in bot.lane_history("twin")] == ["it said NaN", "lift"]


def test_routes_to_it_are_taken_back_with_it(bot: Catalog) -> None:
    bot.route("bot:prod", splits=["v2=10%", "v3=5%"], shadows=["v2=50%"])
    bot.route("bot", splits=["v2=1%"])
    bot.quarantine("bot:v2", "it said NaN")
    routes = bot.adapter("bot").routes
    assert routes["prod"].splits == (Split(number=3, share=0.05),)
    assert routes["prod"].shadows == ()
    assert set(routes) == {"prod"}
    taken = [c for c in bot.lane_history("bot") if c.kind == "rollback"]
    assert [(c.subject, c.reason) for c in taken] == [
        ("latest", "v2 was quarantined"),
        ("prod", "v2 was quarantined"),
    ]
    with pytest.raises(Quarantined, match=r"adapterctl quarantine bot:v2 --lift"):
        bot.route("bot:prod", splits=["v2=10%"])
    bot.lift("bot:v2")
    assert bot.route("bot:prod", splits=["v2=10%"]).splits[0].number == 2


def test_what_is_not_there_or_not_quarantined_is_said(bot: Catalog) -> None:
    with pytest.raises(AdapterNotFound):
        bot.quarantine("nobody", "x")
    with pytest.raises(NotFound, match="'bot:v3' is not quarantined"):
        bot.lift("bot:v3")
    # One that is taken out of service stays so, and deploying it does not lift anything.
    bot.undeploy("bot:v3")
    bot.quarantine("bot:v3", "x")
    assert bot.deploy("bot:v3").deployment.quarantined == "x"
    bot.rm("bot:v3", force=True)
    assert [d.number for d in bot.deployments()] == []
