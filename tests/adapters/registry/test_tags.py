"""Moving tags, their history, the default tag, and rollback."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from adapters.catalog import Catalog
from adapters.errors import (
    AdapterNotFound,
    Conflict,
    InvalidReference,
    TagNotFound,
    UsageError,
    VersionNotFound,
)

Register = Callable[..., str]


@pytest.fixture
def bot(catalog: Catalog, register: Register) -> Catalog:
    """`bot` with v1 to v4 and no tag but `latest`."""
    for seed in range(4):
        register(seed)
    return catalog


def value(catalog: Catalog, tag: str) -> int | None:
    return catalog.adapter("bot").tags.get(tag)


def test_tag_takes_a_version_a_digest_or_a_tag(bot: Catalog) -> None:
    digest = bot.show("bot:v3").digest
    assert bot.tag("bot:prod", "v2").new == 2
    assert bot.tag("bot:prod", digest).new == 3
    assert bot.tag("bot:prod", digest[:17]).new == 3
    assert bot.tag("bot:prod", "latest").new == 4
    change = bot.tag("bot:prod", "v1", actor="alice")
    assert (change.old, change.new, change.actor, change.reason) == (4, 1, "alice", "tag")


def test_a_tag_that_does_not_move_leaves_no_trace(bot: Catalog) -> None:
    bot.tag("bot:prod", "v2")
    before = bot.history("bot")
    change = bot.tag("bot:prod", "v2")
    assert (change.old, change.new) == (2, 2)
    assert bot.history("bot") == before


def test_wrong_use_of_tag(bot: Catalog) -> None:
    with pytest.raises(InvalidReference, match="names no tag"):
        bot.tag("bot", "v1")
    with pytest.raises(InvalidReference, match="names no tag"):
        bot.tag("bot:v2", "v1")
    with pytest.raises(UsageError, match="to which version"):
        bot.tag("bot:prod", None)
    with pytest.raises(VersionNotFound, match="v1, v2, v3, v4"):
        bot.tag("bot:prod", "v9")
    with pytest.raises(TagNotFound, match="latest"):
        bot.tag("bot:prod", "stage")
    with pytest.raises(AdapterNotFound):
        bot.tag("cat:prod", "v1")


def test_the_default_tag_is_what_the_bare_name_means(bot: Catalog) -> None:
    assert bot.show("bot").number == 4
    bot.tag("bot:prod", "v2", default=True)
    assert bot.show("bot").number == 2
    with pytest.raises(Conflict, match="it is what 'bot' means"):
        bot.delete_tag("bot:prod")
    change = bot.tag("bot:latest", None, default=True, actor="bob")
    assert (change.old, change.new, change.reason, change.actor) == (4, 4, "made default", "bob")
    assert bot.show("bot").number == 4
    bot.delete_tag("bot:prod")
    with pytest.raises(Conflict, match="latest"):
        bot.delete_tag("bot:latest")
    with pytest.raises(TagNotFound):
        bot.delete_tag("bot:prod")


def test_rollback_is_an_undo_stack(bot: Catalog) -> None:
    for version in ("v1", "v2", "v3"):
        bot.tag("bot:prod", version)
    assert bot.rollback("bot:prod", actor="eve").new == 2
    assert bot.rollback("bot:prod").new == 1
    with pytest.raises(Conflict, match="no earlier value"):
        bot.rollback("bot:prod")
    assert value(bot, "prod") == 1
    bot.tag("bot:prod", "v4")
    assert bot.rollback("bot:prod").new == 1
    moves = [(c.old, c.new, c.reason) for c in bot.history("bot") if c.tag == "prod"]
    assert moves == [
        (None, 1, "tag"),
        (1, 2, "tag"),
        (2, 3, "tag"),
        (3, 2, "rollback"),
        (2, 1, "rollback"),
        (1, 4, "tag"),
        (4, 1, "rollback"),
    ]


def test_rollback_of_latest_and_registering_after_it(bot: Catalog, register: Register) -> None:
    assert bot.rollback("bot:latest").new == 3
    register(9)
    assert value(bot, "latest") == 5
    assert bot.rollback("bot:latest").new == 3
    assert bot.rollback("bot:latest").new == 2


def test_rollback_to_a_removed_version_is_refused(bot: Catalog) -> None:
    bot.tag("bot:prod", "v1")
    bot.tag("bot:prod", "v2")
    bot.rm("bot:v1")
    with pytest.raises(VersionNotFound, match="v1, its previous value, has been removed"):
        bot.rollback("bot:prod")
    assert value(bot, "prod") == 2


def test_rollback_after_the_tagged_version_was_removed_by_force(bot: Catalog) -> None:
    for version in ("v1", "v2", "v3"):
        bot.tag("bot:prod", version)
    bot.rm("bot:v3", force=True)
    assert value(bot, "prod") is None
    assert bot.rollback("bot:prod").new == 2
    bot.rm("bot:v4", force=True)
    assert value(bot, "latest") == 2
    assert bot.rollback("bot:latest").new == 1


def test_rollback_undoes_a_deletion(bot: Catalog) -> None:
    bot.tag("bot:prod", "v1")
    bot.tag("bot:prod", "v2")
    assert bot.delete_tag("bot:prod").new is None
    assert bot.rollback("bot:prod").new == 2
    assert bot.rollback("bot:prod").new == 1
    bot.delete_tag("bot:prod")
    bot.tag("bot:prod", "v3")
    assert bot.rollback("bot:prod").new == 1


def test_rollback_knows_nothing_of_an_earlier_adapter(bot: Catalog, register: Register) -> None:
    bot.tag("bot:prod", "v1")
    bot.tag("bot:prod", "v2")
    bot.rm("bot", force=True)
    assert register(1, tag="prod") == "v5"
    with pytest.raises(Conflict, match="no earlier value"):
        bot.rollback("bot:prod")
    with pytest.raises(TagNotFound):
        bot.rollback("bot:never")
