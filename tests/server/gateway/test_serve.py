"""What `adapterctl serve` does before there is an engine."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import psutil
import pytest

from adapters.catalog import Catalog
from adapters.errors import BaseError, UsageError
from adapters.frozen import Lane
from server.gateway.banner import ready_banner
from server.gateway.runtime import announced, listen, runtime_directory, url_of
from server.gateway.serve import check_keys, run
from server.settings import ServeSettings
from tests.adapters.bases.quantized_dirs import write_nf4
from tests.server.gateway.lane_cases import MODEL, deployment
from tests.server.gateway.scripted import Registry, example_snapshot


def settings(store: Path, host: str) -> ServeSettings:
    return ServeSettings(store=store, base="tiny", host=host)


def test_beyond_loopback_nothing_starts_without_a_key(tmp_path: Path) -> None:
    public = settings(tmp_path, "0.0.0.0")
    with Catalog.init(tmp_path / "store") as catalog:
        check_keys(settings(tmp_path, "127.0.0.1"), catalog)
        check_keys(public.model_copy(update={"require_key": "never"}), catalog)
        with pytest.raises(UsageError, match="adapterctl keys create --scope admin"):
            check_keys(public, catalog)
        key_id, _ = catalog.create_key(["infer"], "app")
        check_keys(public, catalog)
        catalog.revoke_key(key_id)
        with pytest.raises(UsageError, match=r"other machines can reach 0\.0\.0\.0"):
            check_keys(public, catalog)


def test_beyond_loopback_nothing_is_opened_without_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Catalog.init(tmp_path / "store") as catalog:
        catalog.base_add("tiny", write_nf4(tmp_path / "nf4"))
    opened: list[object] = []
    monkeypatch.setattr("server.gateway.serve.listen", lambda *address: opened.append(address))
    with pytest.raises(UsageError, match="has no key yet"):
        run(settings(tmp_path / "store", "0.0.0.0").model_copy(update={"engine_url": "unix:/x"}))
    assert opened == []


def test_a_base_that_no_engine_serves_is_refused_before_anything_is_started(
    tmp_path: Path,
) -> None:
    with Catalog.init(tmp_path / "store") as catalog:
        catalog.base_add("tiny", write_nf4(tmp_path / "nf4"))
    with pytest.raises(BaseError, match=r"base 'tiny' cannot be served: .* bitsandbytes"):
        run(settings(tmp_path / "store", "127.0.0.1"))


def test_an_address_that_is_taken_is_wrong_usage() -> None:
    first = listen("127.0.0.1", 0)
    port = first.getsockname()[1]
    assert url_of(first) == f"http://127.0.0.1:{port}"
    with pytest.raises(UsageError, match="choose another --port"):
        listen("127.0.0.1", port)
    first.close()


def test_the_directory_of_a_killed_server_is_cleaned_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert not psutil.pid_exists(ended.pid)
    stale = tmp_path / f"adapterctl-{ended.pid}-x"
    stale.mkdir()
    foreign = tmp_path / "adapterctl-notes"
    foreign.mkdir()
    with runtime_directory() as mine:
        assert mine.name.startswith(f"adapterctl-{os.getpid()}-")
        assert not stale.exists()
        with runtime_directory() as second:
            assert mine.exists()
            assert second != mine
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapterctl-notes"]


def test_each_server_announces_itself_and_removes_what_killed_ones_left(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    stale = tmp_path / f"server-{ended.pid}.json"
    stale.write_text("{}")
    other = tmp_path / f"server-{os.getppid()}.json"
    other.write_text("{}")
    with announced(tmp_path, "http://127.0.0.1:1"):
        mine = tmp_path / f"server-{os.getpid()}.json"
        assert json.loads(mine.read_text()) == {"pid": os.getpid(), "url": "http://127.0.0.1:1"}
        assert not stale.exists()
    assert list(tmp_path.iterdir()) == [other]


def test_the_banner_shows_an_adapter_of_the_base_that_is_served() -> None:
    banner = ready_banner("http://127.0.0.1:8000", "tiny", example_snapshot(), 3)
    assert 'model="pirate"' in banner
    assert 'api_key="none"' in banner
    assert "elsewhere" not in banner
    assert "weighty" not in banner
    assert "http://127.0.0.1:8000/v1/chat/completions" in banner


def test_the_banner_asks_for_a_key_where_one_is_needed() -> None:
    banner = ready_banner("http://0.0.0.0:8000", "tiny", example_snapshot(), 3, key_needed=True)
    assert '-H "Authorization: Bearer $ADAPTERCTL_KEY" -H' in banner
    assert "import os\n  from openai import OpenAI" in banner
    assert 'api_key=os.environ["ADAPTERCTL_KEY"])' in banner


def test_the_banner_shows_what_is_deployed_and_nothing_that_is_out_of_service() -> None:
    registry = Registry(example_snapshot())
    registry.change("weighty", deployments={2: deployment("weighty", 2, Lane.MERGED, MODEL)})
    registry.change("pirate", deployments={2: deployment("pirate", 2, None)})
    banner = ready_banner("http://127.0.0.1:8000", "tiny", registry.current(), 3)
    assert 'model="weighty"' in banner
    assert "pirate" not in banner
    assert "http://127.0.0.1:8000/v1/chat/completions" in banner
