"""Registering, listing, showing and removing, through the catalog."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.catalog import Catalog
from adapters.errors import (
    AdapterNotFound,
    AlreadyExists,
    BaseNotFound,
    DamagedArtifact,
    InUse,
    InvalidReference,
    NotFound,
    SourceUnreadable,
    VersionNotFound,
)
from adapters.models import Registered
from adapters.store.content import blob_problem
from adapters.store.leases import EngineLease
from tests.adapters.registry.small_intake import WEIGHTS, SmallIntake, write_base, write_source

Register = Callable[..., str]
Source = Callable[[int], str]


def test_register_makes_a_version_with_an_intact_blob(catalog: Catalog, source: Source) -> None:
    steps: list[str] = []
    seen: list[tuple[int, int]] = []
    done = catalog.register(
        source(1),
        name="bot",
        base="small",
        tag="prod",
        on_step=steps.append,
        progress=lambda a, b: seen.append((a, b)),
    )
    assert (done.name, done.version, done.created) == ("bot", "v1", True)
    assert done.tags == ("latest", "prod")
    assert steps == ["stage", "write", "seal", "publish", "commit", "done"]
    assert seen == [(1, 2), (2, 2)]
    blob = catalog.layout.blob(done.digest)
    assert blob_problem(blob, done.digest) is None
    assert sorted(p.name for p in blob.iterdir()) == [
        "adapter_config.json",
        WEIGHTS,
        "content.json",
    ]
    assert list(catalog.layout.staging.iterdir()) == []
    version = catalog.show("bot:prod")
    assert version.digest == done.digest
    assert version.base_digest == catalog.base("small").digest
    files = ("adapter_config.json", WEIGHTS)
    assert version.size_bytes == sum((blob / name).stat().st_size for name in files)
    manifest = catalog.version_manifest("bot@" + done.digest[:20])
    assert (manifest.source, manifest.scale) == (source(1), "2, folded into B")


def test_same_content_again_is_the_same_version_but_tags_move(
    catalog: Catalog, register: Register, source: Source
) -> None:
    assert register(1, tag="prod") == "v1"
    assert register(2) == "v2"
    again = catalog.register(source(1), name="bot", base="small", tag="canary")
    assert (again.version, again.created) == ("v1", False)
    assert again.tags == ("canary", "latest", "prod")
    assert list(catalog.adapter("bot").versions) == [1, 2]


def test_two_adapters_share_one_blob_and_removing_one_keeps_it(
    catalog: Catalog, register: Register
) -> None:
    register(1, name="a")
    register(1, name="b")
    assert len(catalog.layout.stored_digests()) == 1
    catalog.rm("a")
    assert catalog.gc().blobs == ()
    assert catalog.verify().ok


def test_the_digest_covers_the_base(catalog: Catalog, source: Source, tmp_path: Path) -> None:
    catalog.base_add("other", write_base(tmp_path / "other", seed=1))
    one = catalog.register(source(1), name="bot", base="small")
    two = catalog.register(source(1), name="bot", base="other")
    assert one.digest != two.digest
    assert [v.base for v in catalog.adapter("bot").versions.values()] == ["small", "other"]


def test_dry_run_checks_everything_and_keeps_nothing(catalog: Catalog, source: Source) -> None:
    def dry(seed: int) -> Registered:
        return catalog.register(source(seed), name="bot", base="small", tag="x", dry_run=True)

    assert (dry(1).version, dry(1).created, dry(1).tags) == ("v1", True, ("latest", "x"))
    assert catalog.adapters() == []
    assert catalog.layout.stored_digests() == []
    real = catalog.register(source(1), name="bot", base="small")
    assert real.digest == dry(1).digest
    assert (dry(1).version, dry(1).created) == ("v1", False)
    assert (dry(2).version, dry(2).created) == ("v2", True)


def test_a_failed_intake_leaves_nothing(catalog: Catalog, source: Source, tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable):
        catalog.register(str(tmp_path / "nowhere"), name="bot", base="small")
    weights = Path(source(1)) / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(DamagedArtifact):
        catalog.register(str(weights.parent), name="bot", base="small")
    assert catalog.adapters() == []
    assert list(catalog.layout.staging.iterdir()) == []


def test_names_are_checked_before_the_artifact(catalog: Catalog, source: Source) -> None:
    for name, tag in (("-bad", None), ("bot", "v3"), ("a/b", None), ("bot", "../x")):
        with pytest.raises(InvalidReference):
            catalog.register("/nowhere", name=name, base="small", tag=tag)
    with pytest.raises(BaseNotFound):
        catalog.register("/nowhere", name="bot", base="large")


def test_a_name_is_a_base_or_an_adapter(
    catalog: Catalog, register: Register, source: Source, tmp_path: Path
) -> None:
    register(1)
    with pytest.raises(AlreadyExists, match="is an adapter"):
        catalog.base_add("bot", write_base(tmp_path / "b", seed=3))
    with pytest.raises(AlreadyExists, match="is a base"):
        catalog.register(source(1), name="small", base="small")


def test_bases(catalog: Catalog, register: Register, tmp_path: Path) -> None:
    moved = write_base(tmp_path / "moved")
    assert catalog.base_add("small", moved).path == str(moved)
    with pytest.raises(AlreadyExists, match="another model"):
        catalog.base_add("small", write_base(tmp_path / "other", seed=9))
    assert catalog.base_descriptor("small").vocab_size == 16
    register(1)
    register(2, name="cat")
    with pytest.raises(InUse, match="2 versions of bot, cat"):
        catalog.base_rm("small")
    catalog.rm("bot")
    catalog.rm("cat")
    catalog.base_rm("small")
    assert catalog.bases() == []
    for call in (catalog.base, catalog.base_rm, catalog.base_descriptor):
        with pytest.raises(BaseNotFound):
            call("small")


def test_rm_of_a_version_that_a_tag_points_at(catalog: Catalog, register: Register) -> None:
    register(1, tag="prod")
    register(2)
    for ref in ("bot:v1", "bot:v2", "bot:prod"):
        with pytest.raises(InUse):
            catalog.rm(ref)
    assert catalog.rm("bot:v2", force=True, actor="me") == ["bot:v2"]
    record = catalog.adapter("bot")
    assert record.tags == {"latest": 1, "prod": 1}
    assert catalog.history("bot")[-1].model_dump(exclude={"at"}) == {
        "tag": "latest",
        "old": 2,
        "new": 1,
        "actor": "me",
        "reason": "version removed",
    }
    register(3)
    assert catalog.rm("bot:prod", force=True) == ["bot:v1"]
    assert catalog.adapter("bot").tags == {"latest": 3}


def test_rm_of_an_unused_version_needs_no_force(catalog: Catalog, register: Register) -> None:
    register(1)
    register(2)
    digest = catalog.show("bot:v1").digest
    assert catalog.rm(f"bot@{digest}") == ["bot:v1"]
    with pytest.raises(VersionNotFound, match="it has v2"):
        catalog.show("bot:v1")


def test_rm_of_an_adapter_and_numbers_are_never_reused(
    catalog: Catalog, register: Register
) -> None:
    register(1, tag="prod")
    register(2)
    with pytest.raises(InUse, match="prod"):
        catalog.rm("bot")
    assert catalog.rm("bot", force=True) == ["bot:v1", "bot:v2", "bot"]
    with pytest.raises(AdapterNotFound):
        catalog.adapter("bot")
    assert {c.reason for c in catalog.history("bot")[-2:]} == {"adapter removed"}
    assert register(1) == "v3"
    assert catalog.rm("bot:latest", force=True) == ["bot:v3", "bot"]
    assert register(2) == "v4"
    with pytest.raises(AdapterNotFound):
        catalog.history("never")


def test_rm_respects_live_engines_and_gc_keeps_their_blobs(
    catalog: Catalog, register: Register
) -> None:
    register(1)
    register(2)
    digest = catalog.show("bot:v1").digest
    lease = EngineLease(catalog.layout, "engine-1")
    with lease:
        blob = lease.hold(digest)
        with pytest.raises(InUse, match="engine-1"):
            catalog.rm("bot:v1")
        with pytest.raises(InUse, match="engine-1"):
            catalog.rm("bot")
        catalog.rm("bot:v1", force=True)
        report = catalog.gc()
        assert (report.blobs, report.kept_for_engines) == ((), (digest,))
        assert blob_problem(blob, digest) is None
    assert catalog.gc().blobs == (digest,)
    assert not blob.exists()


def test_verify_finds_every_kind_of_damage(
    catalog: Catalog, register: Register, tmp_path: Path
) -> None:
    for seed in range(4):
        register(seed, name=f"bot{seed}")
    blobs = [catalog.layout.blob(catalog.show(f"bot{i}").digest) for i in range(4)]
    seen: list[tuple[int, int]] = []
    assert catalog.verify(lambda a, b: seen.append((a, b))).ok
    assert seen[-1] == (4, 4)
    weights = blobs[0] / WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(data)
    (blobs[1] / "adapter_config.json").unlink()
    shutil.rmtree(blobs[2])
    (blobs[3] / "extra").touch()
    shutil.rmtree(tmp_path / "small")
    problems = "\n".join(catalog.verify().problems)
    assert "bot0:v1" in problems and "has changed" in problems
    assert "bot1:v1" in problems and "adapter_config.json is missing" in problems
    assert "bot2:v1" in problems and "it is missing" in problems
    assert "bot3:v1" in problems and "extra does not belong there" in problems
    assert "base 'small'" in problems
    # What the messages advise works.
    write_base(tmp_path / "small")
    for seed in range(4):
        register(seed, name=f"bot{seed}")
    assert catalog.verify().problems == ()


def test_verify_notices_a_base_that_became_another(catalog: Catalog, tmp_path: Path) -> None:
    write_base(tmp_path / "small", seed=77)
    (problem,) = catalog.verify().problems
    assert "another model now" in problem


def test_inspect_passes_the_bases(catalog: Catalog, source: Source) -> None:
    assert catalog.inspect(source(1)).base == "small"
    assert catalog.inspect("/nowhere").problems
    with pytest.raises(BaseNotFound):
        catalog.inspect(source(1), base="large")


def test_keys(catalog: Catalog) -> None:
    assert not catalog.has_key()
    key_id, secret = catalog.create_key(["serve", "admin"], "ops")
    assert catalog.has_key()
    found = catalog.key_for(secret)
    assert found is not None
    assert (found.id, found.label, found.scopes) == (key_id, "ops", ("admin", "serve"))
    forged = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    for wrong in (forged, "", "ak-", f"ak-{key_id}-", "ü", secret + "x"):
        assert catalog.key_for(wrong) is None
    catalog.revoke_key(key_id)
    assert catalog.key_for(secret) is None
    assert not catalog.has_key()
    with pytest.raises(NotFound):
        catalog.revoke_key("nobody")
    stored = b"".join(p.read_bytes() for p in catalog.layout.root.glob("registry.db*"))
    assert key_id.encode() in stored
    assert secret.encode() not in stored


def test_another_catalog_sees_everything(
    catalog: Catalog, register: Register, tmp_path: Path
) -> None:
    register(1, tag="prod")
    with Catalog.open(catalog.layout.root, intake=SmallIntake()) as other:
        assert other.adapters() == catalog.adapters()
        other.register(str(write_source(tmp_path / "n", 5)), name="bot", base="small")
    assert catalog.show("bot").number == 2
