"""An adapter on its way to another store: everything comes along, and nothing is believed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from adapters.catalog import Catalog
from adapters.errors import (
    AdapterctlError,
    AdapterNotFound,
    AlreadyExists,
    BaseNotFound,
    Conflict,
    DamagedArtifact,
    InvalidConfig,
    InvalidReference,
    SourceRefused,
    SourceUnreadable,
    StoreDamaged,
    StoreTooNew,
    UsageError,
)
from adapters.store.content import Content
from tests.adapters.backups.parcel import Parcel
from tests.adapters.backups.settled_intake import Stores, tree
from tests.adapters.backups.test_backup import spoil
from tests.adapters.registry.small_intake import WEIGHTS


@pytest.fixture
def other(stores: Stores) -> Iterator[Catalog]:
    """An empty store whose base is the same model under another name."""
    with stores.new("elsewhere", base="llama") as catalog:
        yield catalog


@pytest.fixture
def packed(catalog: Catalog, tmp_path: Path) -> Path:
    """The adapter `bot` of the first store."""
    return Path(catalog.export("bot", tmp_path / "bot.tar.zst").path)


def test_a_whole_adapter_comes_with_all_it_has(
    catalog: Catalog, other: Catalog, stores: Stores, tmp_path: Path
) -> None:
    catalog.tag("bot:prod", None, default=True)
    stores.register(catalog, 9)
    catalog.rm("bot:v3", force=True)
    catalog.keep_report(
        catalog.show("bot:v1").digest, {"report.json": b"{}", "report.html": b"<script>"}
    )
    made = catalog.export("bot", tmp_path / "bot.tar")
    assert (made.versions, made.tags) == (("v1", "v2"), ("latest", "prod"))
    imported = other.import_(tmp_path / "bot.tar")
    assert [one.version for one in imported.versions if one.created] == ["v1", "v2"]
    assert imported.history
    here, there = catalog.adapter("bot"), other.adapter("bot")
    assert there.tags == here.tags
    assert there.default_tag == here.default_tag == "prod"
    assert {n: v.digest for n, v in there.versions.items()} == {
        n: v.digest for n, v in here.versions.items()
    }
    assert [v.registered_at for v in there.versions.values()] == [
        v.registered_at for v in here.versions.values()
    ]
    assert {v.base for v in there.versions.values()} == {"llama"}
    assert other.history("bot") == catalog.history("bot")
    assert other.version_manifest("bot:v1") == catalog.version_manifest("bot:v1")
    assert other.verify().problems == ()
    # Figures come along, pages do not: anything could be in one.
    report = other.layout.report(here.versions[1].digest)
    assert [file.name for file in report.iterdir()] == ["report.json"]
    # v3 was given once: it is not given again, here neither.
    assert stores.register(other, 10) == "v4"


def test_who_took_what_out_and_in_is_in_the_audit_log(
    catalog: Catalog, other: Catalog, packed: Path
) -> None:
    catalog.backup(packed.with_name("backup.tar"))
    told = [(row.action, row.subject, row.outcome) for row in catalog.audit()][-2:]
    assert told == [
        ("export", "bot", "ok"), ("backup", str(packed.with_name("backup.tar")), "ok"),
    ]  # fmt: skip
    other.import_(packed, actor="ann", dry_run=True)
    other.import_(packed, actor="ann")
    (row,) = [row for row in other.audit() if row.action == "import"]
    assert (row.actor, row.subject) == ("ann", str(packed))
    assert row.after is not None
    assert row.after["bot:v1"] == catalog.show("bot:v1").digest
    with pytest.raises(SourceUnreadable):
        other.import_(packed.with_name("nothing.tar"))
    assert other.audit()[-1].outcome == "source_unreadable"


def test_its_tags_can_be_rolled_back_as_at_home(
    catalog: Catalog, other: Catalog, packed: Path
) -> None:
    catalog.tag("bot:prod", "v2")
    again = Path(catalog.export("bot", packed).path)
    other.import_(again)
    assert other.rollback("bot:prod").new == catalog.rollback("bot:prod").new == 1


def test_one_version_comes_with_its_number_and_tags(
    catalog: Catalog, other: Catalog, tmp_path: Path
) -> None:
    made = catalog.export("bot:v2", tmp_path / "two.tar.zst")
    assert (made.versions, made.tags) == (("v2",), ("latest",))
    imported = other.import_(tmp_path / "two.tar.zst", actor="eve")
    assert not imported.history
    record = other.adapter("bot")
    assert (list(record.versions), record.tags) == ([2], {"latest": 2})
    assert [(c.tag, c.new, c.reason, c.actor) for c in other.history("bot")] == [
        ("latest", 2, "import", "eve")
    ]
    with_tag = catalog.export("bot:prod", tmp_path / "one.tar.zst")
    assert (with_tag.versions, with_tag.tags) == (("v1",), ("prod",))


def test_again_it_changes_nothing(other: Catalog, packed: Path) -> None:
    other.import_(packed)
    before = (other.adapters(), other.history("bot"), tree(other.layout.blobs))
    again = other.import_(packed)
    assert [one.created for one in again.versions] == [False, False]
    assert (other.adapters(), other.history("bot"), tree(other.layout.blobs)) == before


def test_what_came_since_is_added_and_tags_stay(
    catalog: Catalog, other: Catalog, stores: Stores, packed: Path, tmp_path: Path
) -> None:
    other.import_(packed)
    other.tag("bot:prod", "v2")
    stores.register(catalog, 7, tag="canary")
    imported = other.import_(Path(catalog.export("bot", tmp_path / "more.tar").path))
    assert [(one.version, one.created) for one in imported.versions] == [
        ("v1", False), ("v2", False), ("v3", True),
    ]  # fmt: skip
    assert other.adapter("bot").tags == {"latest": 3, "prod": 2, "canary": 3}
    assert imported.kept_tags == ("prod",)


def test_a_number_never_means_something_else(
    catalog: Catalog, other: Catalog, stores: Stores, packed: Path
) -> None:
    stores.register(other, 8)
    with pytest.raises(Conflict, match=r"v1 of 'bot' is another version here.*--name"):
        other.import_(packed)
    other.rm("bot", force=True)
    with pytest.raises(Conflict, match="was another version here, now removed"):
        other.import_(packed)
    assert other.adapters() == []
    other.import_(packed, name="bot-of-ann")
    assert list(other.adapter("bot-of-ann").versions) == [1, 2]
    with pytest.raises(AlreadyExists, match="is a base"):
        other.import_(packed, name="llama")
    # The same content under another number: nobody could tell which one was meant.
    stores.register(other, 2, name="mine")
    second = Path(catalog.export("bot:v2", packed.with_name("second.tar")).path)
    with pytest.raises(Conflict, match="has the content of v2 already, as v1"):
        other.import_(second, name="mine")


def test_the_base_must_be_here(catalog: Catalog, stores: Stores, packed: Path) -> None:
    with (
        stores.new("strangers", seed=5) as other,
        pytest.raises(BaseNotFound, match=r"needs the base 'small'.*base add"),
    ):
        other.import_(packed)


def test_a_dry_run_keeps_nothing(other: Catalog, packed: Path) -> None:
    imported = other.import_(packed, dry_run=True)
    assert [one.created for one in imported.versions] == [True, True]
    assert imported.dry_run
    assert (other.adapters(), other.layout.stored_digests()) == ([], [])
    assert list(other.layout.staging.iterdir()) == []


def test_what_cannot_be_exported(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFound):
        catalog.export("nobody", tmp_path / "a.tar")
    with pytest.raises(UsageError, match=r"ends in \.tar\.zst or \.tar"):
        catalog.export("bot", tmp_path / "bot.zip")
    spoil(catalog, "bot:v1")
    with pytest.raises(StoreDamaged, match="cannot be exported"):
        catalog.export("bot", tmp_path / "a.tar")
    assert not (tmp_path / "a.tar").exists()
    assert list(catalog.layout.leases.iterdir()) == []


# --- exports of strangers -------------------------------------------------------------------------


@pytest.fixture
def parcel(catalog: Catalog, tmp_path: Path) -> Parcel:
    return Parcel(Path(catalog.export("bot", tmp_path / "parcel.tar").path))


def with_content(parcel: Parcel, change: Callable[[dict[str, bytes]], None], tmp: Path) -> None:
    """v1 gets other files, with every digest put right."""
    (first, *rest) = parcel.document["versions"]
    old = first["digest"].removeprefix("sha256:")
    place = f"blobs/sha256/{old[:2]}/{old}/"
    files = {
        name.removeprefix(place): parcel.files.pop(name)
        for name in list(parcel.files)
        if name.startswith(place)
    }
    del files["content.json"]
    change(files)
    digests = {name: f"sha256:{hashlib.sha256(data).hexdigest()}" for name, data in files.items()}
    content = Content(base=first["base_digest"], files=digests)
    new = content.digest.removeprefix("sha256:")
    for name, data in {**files, "content.json": content.encode()}.items():
        parcel.files[f"blobs/sha256/{new[:2]}/{new}/{name}"] = data
    parcel.say(versions=[{**first, "digest": content.digest}, *rest])


def _weights(files: dict[str, bytes], tmp: Path, change: Callable[[Any], Any]) -> None:
    file = tmp / "changed.safetensors"
    file.write_bytes(files[WEIGHTS])
    save_file({name: change(tensor) for name, tensor in load_file(file).items()}, file)
    files[WEIGHTS] = file.read_bytes()


def test_weights_that_registration_would_refuse_are_refused(
    parcel: Parcel, other: Catalog, tmp_path: Path
) -> None:
    nan = np.float32("nan")
    with_content(parcel, lambda files: _weights(files, tmp_path, lambda t: t * nan), tmp_path)
    with pytest.raises(DamagedArtifact, match=r"v1 is not what registering it .* is not finite"):
        other.import_(parcel.pack())
    assert other.adapters() == []


def test_files_that_registration_would_not_have_made_are_refused(
    parcel: Parcel, other: Catalog, tmp_path: Path
) -> None:
    with_content(parcel, lambda files: files.update({"extra.bin": b"x"}), tmp_path)
    with pytest.raises(InvalidConfig, match="v1 is not what registering"):
        other.import_(parcel.pack())


def test_a_document_that_would_steer_requests_is_read_first(
    parcel: Parcel, other: Catalog, tmp_path: Path
) -> None:
    with_content(parcel, lambda files: files.update({"serving.json": b"[]"}), tmp_path)
    with pytest.raises(InvalidConfig, match=r"serving\.json of v1"):
        other.import_(parcel.pack())


def _flip(parcel: Parcel) -> None:
    name = next(name for name in parcel.files if name.endswith(WEIGHTS))
    parcel.files[name] = parcel.files[name][:-1] + b"\0"


def _leave_out(parcel: Parcel) -> None:
    parcel.files = {"export.json": parcel.files["export.json"]}


def _no_document(parcel: Parcel) -> None:
    del parcel.files["export.json"]


def _lead_out(parcel: Parcel) -> None:
    parcel.files["../../out"] = b"x"


def _other_base(parcel: Parcel) -> None:
    first, second = parcel.document["versions"]
    parcel.say(versions=[{**first, "digest": second["digest"]}, second])


def _rollback_of_nothing(parcel: Parcel) -> None:
    parcel.say(
        tag_history=[
            {"tag": "prod", "old": None, "new": 1, "at": datetime.now(UTC).isoformat(),
             "actor": "eve", "reason": "rollback"},
        ]
    )  # fmt: skip


def _absurd_number(parcel: Parcel) -> None:
    (first, *rest) = parcel.document["tag_history"]
    parcel.say(tag_history=[{**first, "old": 10**30}, *rest])


def _other_end(parcel: Parcel) -> None:
    parcel.say(tags={"prod": 2, "latest": 2})


STRANGE: dict[str, tuple[Callable[[Parcel], None], type[AdapterctlError]]] = {
    "content that was changed": (_flip, DamagedArtifact),
    "no content": (_leave_out, DamagedArtifact),
    "a member that leads out": (_lead_out, SourceRefused),
    "no document": (_no_document, SourceUnreadable),
    "another format": (lambda p: p.say(format=2), StoreTooNew),
    "a field that nobody knows": (lambda p: p.say(more=1), StoreDamaged),
    "no version": (lambda p: p.say(versions=[]), StoreDamaged),
    "one content twice": (_other_base, InvalidConfig),
    "a tag of nothing": (lambda p: p.say(tags={"prod": 9}), InvalidConfig),
    "a tag that is none": (lambda p: p.say(tags={"v1": 1}), InvalidReference),
    "a name that is none": (lambda p: p.say(adapter="../bot"), InvalidReference),
    "a last version before the last": (lambda p: p.say(last_number=1), InvalidConfig),
    "a number beyond all": (lambda p: p.say(last_number=10**12), StoreDamaged),
    "a history that contradicts itself": (_rollback_of_nothing, StoreDamaged),
    "a number that no registry holds": (_absurd_number, InvalidConfig),
    "a history that leads elsewhere": (_other_end, StoreDamaged),
}


@pytest.mark.parametrize("case", STRANGE)
def test_strange_exports_are_one_sentence_and_leave_nothing(
    parcel: Parcel, other: Catalog, case: str
) -> None:
    change, kind = STRANGE[case]
    change(parcel)
    before = tree(other.layout.root)
    with pytest.raises(kind) as caught:
        other.import_(parcel.pack())
    assert "\n" not in caught.value.message
    assert other.adapters() == []
    other.gc()
    after = tree(other.layout.root)
    assert [name for name in after if name not in before and "registry" not in name] == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@given(data=st.data())
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_document_is_a_traceback(parcel: Parcel, other: Catalog, data: st.DataObject) -> None:
    """One value anywhere in export.json is replaced: it is refused, or the store stays sound."""
    kept = dict(parcel.files)
    document = parcel.document
    where: Any = document
    while True:
        key = data.draw(st.sampled_from(sorted(where) if isinstance(where, dict)
                                        else range(len(where))))  # fmt: skip
        deeper = isinstance(where[key], (dict, list)) and len(where[key]) > 0
        if not deeper or data.draw(st.booleans()):
            where[key] = data.draw(JSON)
            break
        where = where[key]
    parcel.files["export.json"] = json.dumps(document).encode()
    try:
        other.import_(parcel.pack(), dry_run=True)
    except AdapterctlError as fault:
        assert fault.message
    finally:
        parcel.files = kept
    assert other.adapters() == []
