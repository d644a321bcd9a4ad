"""Settings: precedence, and mistakes named."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.errors import UsageError
from server.configuration import load_settings
from server.setting_values import is_loopback


def test_a_flag_beats_the_environment_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('store = "s"\nbase = "b"\nport = 1\nslots = 1\nkv_cache_gib = 3\n')
    environment = {"ADAPTERCTL_PORT": "2", "ADAPTERCTL_SLOTS": "2"}
    settings = load_settings(file, {"port": 3, "host": None}, environment)
    assert (settings.port, settings.slots, settings.kv_cache_gib) == (3, 2, 3)
    assert settings.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('base = "b"\nprot = 1', "'prot' is no setting"),
        ('base = "b"\nport = "x"', "setting 'port'"),
        ('base = "b"\nport = 70000', "setting 'port'"),
        ('base = "b"\nengine_url = "ftp://x"', "setting 'engine_url'"),
        ('base = "b"\nengine_url = "http://:80"', "must name a host"),
        ('base = "b"\nengine_url = "http://e:port"', "setting 'engine_url'"),
        ("base = ", "not valid TOML"),
        ("", "'base' is not set: give --base"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=sentence):
        load_settings(file, {"store": "s"}, {})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the configuration"):
        load_settings(tmp_path / "no.toml", {}, {})


def test_loopback() -> None:
    assert all(map(is_loopback, ["localhost", "127.0.0.1", "127.8.8.8", "::1"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "example.org", "127.x.org"]))
