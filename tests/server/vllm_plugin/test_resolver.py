"""The resolver hands out paths inside the store only, leased and whole."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from vllm.lora.resolver import LoRAResolverRegistry

from adapters.errors import NotDeployed, StoreDamaged
from adapters.store.layout import StoreLayout, engine_name
from adapters.store.leases import held_digests
from adapters.store.locks import store_lock
from adapters.store.publish import publish, seal, stage
from server.vllm_plugin import resolver
from server.vllm_plugin.resolver import CONFIG, WEIGHTS, StoreResolver

BASE = "sha256:" + "b" * 64


@pytest.fixture
def layout(tmp_path: Path) -> StoreLayout:
    layout = StoreLayout(tmp_path / "store")
    for directory in layout.directories():
        directory.mkdir()
    return layout


@pytest.fixture
def store_resolver(layout: StoreLayout) -> Iterator[StoreResolver]:
    found = StoreResolver(layout.root, "engine-1")
    yield found
    found.close()


def _publish(layout: StoreLayout, rank: int = 4, **metadata: str) -> str:
    """A real version in the store; returns its digest."""
    with stage(layout) as staging:
        weights = {"x.lora_A.weight": torch.ones(rank, 8)}
        save_file(weights, staging.files / WEIGHTS, metadata={"format": "pt", **metadata})
        (staging.files / CONFIG).write_text(json.dumps({"r": rank}))
        sealed = seal(layout, staging, base_digest=BASE)
        with store_lock(layout, shared=True):
            publish(layout, staging, sealed)
    return sealed.digest


async def test_a_published_version_resolves_and_is_leased(
    layout: StoreLayout, store_resolver: StoreResolver
) -> None:
    digest, other = _publish(layout, 4), _publish(layout, 8)
    request = await store_resolver.resolve_lora("the-base", engine_name(digest))
    assert request is not None
    assert request.lora_name == engine_name(digest)
    assert request.lora_path == str(layout.blob(digest))
    assert held_digests(layout) == {digest: {"engine-1"}}
    await store_resolver.resolve_lora("the-base", engine_name(other))
    assert held_digests(layout) == {digest: {"engine-1"}, other: {"engine-1"}}


async def test_a_version_of_the_merged_lane_is_never_loaded(
    layout: StoreLayout, store_resolver: StoreResolver, caplog: pytest.LogCaptureFixture
) -> None:
    """vLLM would take some of them for a plain LoRA, and answer wrongly."""
    name = engine_name(_publish(layout, lane="merged"))
    with pytest.raises(NotDeployed, match="lane merged"):
        store_resolver.locate(name)
    assert await store_resolver.resolve_lora("the-base", name) is None
    assert "is for the lane merged" in caplog.text


async def test_the_lease_ends_with_its_holder(layout: StoreLayout) -> None:
    digest = _publish(layout)
    first = StoreResolver(layout.root, "engine-1")
    await first.resolve_lora("base", engine_name(digest))
    first.close()
    assert held_digests(layout) == {}


async def test_two_engines_cannot_share_an_id(
    layout: StoreLayout, store_resolver: StoreResolver, caplog: pytest.LogCaptureFixture
) -> None:
    name = engine_name(_publish(layout))
    assert await store_resolver.resolve_lora("base", name) is not None
    with caplog.at_level(logging.WARNING):
        assert await StoreResolver(layout.root, "engine-1").resolve_lora("base", name) is None
    assert "another live engine" in caplog.text


async def test_an_unknown_digest_is_none_and_takes_no_lease(
    layout: StoreLayout, store_resolver: StoreResolver, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert await store_resolver.resolve_lora("base", "sha256-" + "0" * 64) is None
    assert "no such version" in caplog.text
    assert held_digests(layout) == {}


HEX = "0123456789abcdef" * 4


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.text() | st.from_regex(r"sha256[-:][0-9a-fA-F]{62,66}\s?") | st.text("./-:0af\n\x00~"))
@example("../../../etc")
@example("/etc")
@example("~root")
@example("sha256-" + HEX + "\n")
@example("sha256-" + HEX.upper())
@example("sha256-" + HEX + "/../" + HEX)
@example("sha256-" + "٣" * 64)
@example("sha256:" + HEX)
@example("")
async def test_no_other_name_touches_the_disk(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    # Nothing is in this store: a name that got as far as looking would raise VersionNotFound.
    root = tmp_path_factory.getbasetemp() / "not-a-directory"
    root.touch()
    found = StoreResolver(root, "engine-1")
    well_formed = len(name) == 71 and name[:7] == "sha256-" and set(name[7:]) <= set(HEX)
    if not well_formed:
        assert found.locate(name) is None
    assert await found.resolve_lora("base", name) is None


@pytest.mark.parametrize("what", ["directory", "file"])
async def test_a_link_out_of_the_store_is_refused(
    layout: StoreLayout,
    store_resolver: StoreResolver,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    what: str,
) -> None:
    digest = _publish(layout)
    place = layout.blob(digest) if what == "directory" else layout.blob(digest) / WEIGHTS
    place.rename(tmp_path / "outside")
    place.symlink_to(tmp_path / "outside")
    with caplog.at_level(logging.WARNING):
        assert await store_resolver.resolve_lora("base", engine_name(digest)) is None
    assert "outside the store" in caplog.text


async def test_a_store_reached_through_a_link_works(layout: StoreLayout, tmp_path: Path) -> None:
    digest = _publish(layout)
    (tmp_path / "link").symlink_to(layout.root)
    found = StoreResolver(tmp_path / "link", "engine-2")
    request = await found.resolve_lora("base", engine_name(digest))
    found.close()
    assert request is not None
    assert Path(request.lora_path).is_absolute()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.data())
async def test_weights_of_any_other_length_are_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    layout = StoreLayout(tmp_path_factory.mktemp("store"))
    for directory in layout.directories()[1:]:
        directory.mkdir()
    digest = _publish(layout)
    weights = layout.blob(digest) / WEIGHTS
    whole = weights.read_bytes()
    length = data.draw(st.integers(0, len(whole) + 16).filter(lambda n: n != len(whole)))
    weights.chmod(0o644)
    weights.write_bytes((whole + bytes(16))[:length])
    found = StoreResolver(layout.root, "engine-1")
    assert await found.resolve_lora("base", engine_name(digest)) is None
    weights.write_bytes(whole)
    assert await found.resolve_lora("base", engine_name(digest)) is not None
    found.close()
    shutil.rmtree(layout.root)


async def test_a_bit_that_turned_over_is_found_before_the_adapter_is_served(
    layout: StoreLayout, store_resolver: StoreResolver, caplog: pytest.LogCaptureFixture
) -> None:
    """The value stays finite and the file as long as it was: only its hash tells."""
    digest = _publish(layout)
    weights = layout.blob(digest) / WEIGHTS
    whole = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert await store_resolver.resolve_lora("base", engine_name(digest)) is None
    assert f"{WEIGHTS} has changed" in caplog.text
    weights.write_bytes(whole)
    assert await store_resolver.resolve_lora("base", engine_name(digest)) is not None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=80)
    | st.recursive(st.none() | st.integers(), st.lists).map(lambda v: json.dumps(v).encode())
)
@example(b"{}")
@example(b'{"t":{"data_offsets":[0]}}')
@example(b'{"t":5}')
@example(b"[" * 5000)
async def test_damaged_headers_are_refused_without_raising(
    tmp_path_factory: pytest.TempPathFactory, header: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(StoreDamaged):
        resolver.check_weights(path)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b'"x"', b"[" * 5000])
async def test_an_unreadable_configuration_is_refused(
    layout: StoreLayout, store_resolver: StoreResolver, text: bytes
) -> None:
    digest = _publish(layout)
    config = layout.blob(digest) / CONFIG
    config.chmod(0o644)
    config.write_bytes(text)
    assert await store_resolver.resolve_lora("base", engine_name(digest)) is None


@pytest.mark.parametrize("missing", [WEIGHTS, CONFIG, "content.json"])
async def test_a_version_without_one_of_its_files_is_refused(
    layout: StoreLayout, store_resolver: StoreResolver, missing: str
) -> None:
    digest = _publish(layout)
    (layout.blob(digest) / missing).unlink()
    assert await store_resolver.resolve_lora("base", engine_name(digest)) is None


def test_install_registers_one_resolver(tmp_path: Path) -> None:
    before = dict(LoRAResolverRegistry.resolvers)
    try:
        resolver.install(str(tmp_path), "engine-1")
        first = LoRAResolverRegistry.get_resolver(resolver.RESOLVER_NAME)
        resolver.install(str(tmp_path), "engine-1")
        assert LoRAResolverRegistry.get_resolver(resolver.RESOLVER_NAME) is first
    finally:
        LoRAResolverRegistry.resolvers.clear()
        LoRAResolverRegistry.resolvers.update(before)
