"""Resolving for who may use some names only: as in a registry that has no others."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from adapters.access import Access, access
from adapters.compositions import Part
from adapters.errors import AdapterctlError
from adapters.frozen import Lane
from adapters.models import AdapterRecord, BaseRecord, VersionRecord
from adapters.registry.composing import resolve_parts
from adapters.registry.snapshot import Snapshot

NOW = datetime(2030, 1, 1, tzinfo=UTC)
BASES = ("base", "bass")
NAMES = st.text("abx-", min_size=1, max_size=4).filter(lambda n: n[0] != "-" != n[-1])
SELECTORS = st.sampled_from(["", ":prod", ":v1", ":v2", ":gone", "@sha256:" + "00" * 4])
PATTERNS = st.lists(st.text("abx-*?", min_size=1, max_size=4) | st.sampled_from(BASES), max_size=3)


def registry(names: Iterable[str]) -> Snapshot:
    """An adapter of each name, on the first base."""
    bases = {
        name: BaseRecord(
            name=name, path="/x", digest="sha256:" + "b" * 64, architecture="A", added_at=NOW
        )
        for name in BASES
    }
    return Snapshot(bases, {name: adapter(name) for name in names if name not in BASES}, 1)


def adapter(name: str) -> AdapterRecord:
    version = VersionRecord(
        adapter=name,
        number=1,
        digest="sha256:" + name.encode().hex().ljust(64, "0"),
        base="base",
        base_digest="sha256:" + "b" * 64,
        format="peft",
        method="lora",
        lane=Lane.HOT,
        rank=8,
        size_bytes=1,
        registered_at=NOW,
    )
    return AdapterRecord(
        name=name, default_tag="latest", versions={1: version}, tags={"latest": 1, "prod": 1}
    )


def allowed_only(whole: Snapshot, allowed: Access) -> Snapshot:
    """The same registry without what may not be used."""
    return Snapshot(
        {name: base for name, base in whole.bases.items() if allowed.allows(name)},
        {name: one for name, one in whole.adapters.items() if allowed.allows(name)},
        1,
    )


def outcome(snapshot: Snapshot, text: str, allowed: Access) -> object:
    try:
        found = snapshot.resolve(text, allowed.allows)
        return found.reference, found.base.name, found.version
    except AdapterctlError as error:
        return type(error), error.body(), error.http_status


# A version's base is the record that the registry needs to have.
WITH_BASE = PATTERNS.map(lambda patterns: access([*patterns, "base"]))


@given(st.sets(NAMES, max_size=8), WITH_BASE, NAMES | st.sampled_from(BASES), SELECTORS)
def test_a_reference(names: set[str], allowed: Access, name: str, selector: str) -> None:
    whole = registry(names)
    text = name + selector
    assert outcome(whole, text, allowed) == outcome(allowed_only(whole, allowed), text, Access())


@given(st.sets(NAMES, min_size=2, max_size=6), WITH_BASE, st.lists(NAMES, min_size=1, max_size=3))
def test_the_parts_of_a_sum(names: set[str], allowed: Access, parts: list[str]) -> None:
    def tried(snapshot: Snapshot, access_: Access) -> object:
        try:
            return resolve_parts(
                snapshot, [Part(reference=p, weight=1) for p in parts], access_.allows
            )
        except AdapterctlError as error:
            return type(error), error.body()

    whole = registry(names)
    assert tried(whole, allowed) == tried(allowed_only(whole, allowed), Access())
