"""A printed configuration is read back to the same settings, and tells no secret."""

from __future__ import annotations

import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.configuration import RELOADED, load_configuration
from server.printed import as_document, as_toml
from server.setting_values import masked, web_origin
from server.settings import ServeSettings

NAMES = st.from_regex(r"[a-z][a-z0-9.-]{0,8}[a-z]", fullmatch=True)
GIVEN = st.fixed_dictionaries(
    {"store": st.text(min_size=1).filter(lambda text: "\0" not in text), "base": st.text()},
    optional={
        "port": st.integers(0, 65535),
        "slots": st.none() | st.integers(1, 256),
        "memory_gib": st.floats(0.1, 1e6),
        "engine_arguments": st.lists(st.text()).map(tuple),
        "log_prompts": st.booleans(),
        "cors_origins": st.lists(NAMES.map(lambda name: f"https://{name}")).map(tuple),
        "tenant_weights": st.dictionaries(NAMES, st.floats(0.01, 1000)),
        "tenant_adapters": st.dictionaries(NAMES, st.just(("bot-*",)), max_size=3),
        "tls_cert": st.just("/etc/tls/cert.pem"),
    },
)


@given(GIVEN)
@settings(max_examples=60, deadline=None)
def test_what_is_printed_is_read_back(given: dict[str, Any]) -> None:
    flags = {**given, "store": str(Path(given["store"]).absolute())}
    configuration = load_configuration(None, flags, {})
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "serve.toml"
        file.write_text(as_toml(configuration), encoding="utf-8")
        again = load_configuration(file, {}, {}).settings
    resolved = Path(flags["store"]).resolve()
    assert again == configuration.settings.model_copy(update={"store": resolved})


def test_where_each_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('base = "b"\nport = 1\n[tenant_weights]\nacme = 4\n')
    environment = {"ADAPTERCTL_PORT": "2", "ADAPTERCTL_QUEUE_LIMIT": "5"}
    flags = {"store": tmp_path, "queue_limit": 6, "engine_arguments": ("--seed", "1")}
    configuration = load_configuration(file, flags, environment)
    origins = configuration.origins
    assert origins["base"] == origins["tenant_weights"] == str(file)
    assert origins["port"] == "environment ADAPTERCTL_PORT"
    assert origins["queue_limit"] == "flag --queue-limit"
    assert origins["engine_arguments"] == "flag --engine-argument"
    assert origins["host"] == "default"
    assert set(origins) == set(ServeSettings.model_fields)
    text = as_toml(configuration)
    assert "# flag --queue-limit, read again on SIGHUP\nqueue_limit = 6\n" in text
    assert "# max_rank is not set\n" in text
    assert "[tenant_weights]\nacme = 4.0\n" in text


def test_no_secret_is_printed(tmp_path: Path) -> None:
    url = "http://user:pa55word@10.0.0.1:9"
    flags = {"store": tmp_path, "base": "b", "engine_url": url}
    configuration = load_configuration(None, flags, {})
    text = as_toml(configuration)
    assert "pa55word" not in text + repr(as_document(configuration))
    assert '# engine_url = "http://user:***@10.0.0.1:9"\n' in text
    # In a comment: as a setting it would be a wrong one.
    assert "engine_url" not in tomllib.loads(text)


@given(st.text(), st.from_regex(r"[A-Za-z0-9%!]{6,20}", fullmatch=True))
def test_a_password_in_a_url_never_stays(before: str, password: str) -> None:
    for value in (
        f"redis://:{password}-x@host/0",
        [f"{before} rediss://me:{password}-x@host"],
        {"a": f"http://u:{password}-x@h"},
    ):
        assert f"{password}-x" not in repr(masked(value))


@pytest.mark.parametrize("text", ["*", "https://app.example.com", "http://localhost:3000"])
def test_an_origin(text: str) -> None:
    assert web_origin(text) == text


@pytest.mark.parametrize(
    "text", ["app.example.com", "https://a/", "https://a/b", "https://u@a", "ftp://a", "null", ""]
)
def test_no_origin(text: str) -> None:
    with pytest.raises(ValueError, match="origin"):
        web_origin(text)


def test_what_can_be_reloaded_are_settings() -> None:
    assert set(ServeSettings.model_fields) >= RELOADED
