"""Digests, engine names and their containment."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import InvalidReference
from adapters.store.layout import StoreLayout, digest_of_engine_name, engine_name

HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
ROOT = Path("/somewhere/store")


@given(HEX)
def test_engine_names_round_trip_and_stay_in_the_store(digits: str) -> None:
    digest = f"sha256:{digits}"
    name = engine_name(digest)
    assert name == f"sha256-{digits}"
    assert digest_of_engine_name(name) == digest
    blob = StoreLayout(ROOT).blob(digest)
    assert blob.parent.parent == ROOT / "blobs" / "sha256"
    assert (blob.parent.name, blob.name) == (digits[:2], digits)


# Random text is hardly ever close to a name: so also names with something put in or cut off.
NEARLY = st.builds(
    lambda digits, junk, at, cut: f"sha256-{digits[:at]}{junk}{digits[at + cut :]}",
    HEX,
    st.text(st.sampled_from("/.\\:%@ABCDEFxyz\n\r\0 ٣ａ…"), max_size=4),
    st.integers(0, 64),
    st.integers(0, 4),
)


@given(st.one_of(st.text(), NEARLY))
def test_no_name_leads_out_of_the_store(name: str) -> None:
    digest = digest_of_engine_name(name)
    if digest is None:
        return
    blob = StoreLayout(ROOT).blob(digest)
    assert blob.is_relative_to(ROOT / "blobs" / "sha256")
    assert len(blob.name) == 64 and blob.name.isascii() and blob.name.isalnum()
    assert engine_name(digest) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "sha256-",
        "sha256-" + "a" * 63,
        "sha256-" + "a" * 65,
        "sha256-" + "A" * 64,
        "sha256-" + "a" * 64 + "\n",
        "sha256:" + "a" * 64,
        "sha256-../../" + "a" * 58,
        "sha256-" + "a" * 32 + "/" + "a" * 31,
    ],
)
def test_what_is_no_engine_name(name: str) -> None:
    assert digest_of_engine_name(name) is None


@given(st.text())
def test_a_malformed_digest_is_refused(text: str) -> None:
    for use in (engine_name, StoreLayout(ROOT).blob):
        with pytest.raises(InvalidReference):
            use(text)
