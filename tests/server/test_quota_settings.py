"""Tables by tenant, in a file and in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import UsageError
from adapters.tenants import Quota
from server.configuration import load_configuration, load_settings
from server.printed import as_toml
from server.quota_settings import EVERYBODY, TenantQuota, parse_quotas, quotas_of
from server.settings import ServeSettings

_FILE = """
store = "s"
base = "b"
[tenant_quotas.acme]
requests_per_minute = 60
concurrent = 4
[tenant_quotas."*"]
tokens_per_minute = 1000
"""

names = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,20}[a-z0-9])?", fullmatch=True) | st.just(EVERYBODY)
numbers = st.none() | st.integers(1, 10**6)
quotas = st.builds(TenantQuota, **dict.fromkeys(TenantQuota.model_fields, numbers)).filter(
    lambda quota: bool(quota.model_dump(exclude_none=True))
)


def test_a_file_and_a_line_say_the_same(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(_FILE)
    line = "acme:requests=60,concurrent=4 *:tokens=1000"
    from_file = load_settings(file, {}, {})
    from_line = load_settings(None, {"store": "s", "base": "b"}, {"ADAPTERCTL_TENANT_QUOTAS": line})
    assert from_file.tenant_quotas == from_line.tenant_quotas
    assert quotas_of(from_file.tenant_quotas) == {
        "acme": Quota(requests_per_minute=60, concurrent=4),
        "*": Quota(tokens_per_minute=1000),
    }
    # Written as a table again without what is not limited: TOML has no null.
    dumped = from_file.model_dump(mode="json")["tenant_quotas"]
    assert dumped["acme"] == {"requests_per_minute": 60, "concurrent": 4}


@given(st.dictionaries(names, quotas, max_size=5))
def test_every_table_can_be_written_in_one_line(tables: dict[str, TenantQuota]) -> None:
    line = " ".join(
        f"{tenant}:" + ",".join(f"{k}={v}" for k, v in table.model_dump(exclude_none=True).items())
        for tenant, table in tables.items()
    )
    settings = ServeSettings.model_validate({"store": "s", "base": "b", "tenant_quotas": line})
    assert settings.tenant_quotas == tables


@given(st.text(max_size=60))
def test_whatever_is_said_is_read_or_refused_in_words(text: str) -> None:
    try:
        parse_quotas(text)
    except ValueError as error:
        assert "write" in str(error) or "two quotas" in str(error)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("acme", "'acme' is no tenant with quotas"),
        ("acme:", "'acme:' is no tenant with quotas"),
        ("acme:rpm=1", "'rpm=1' is no quota of 'acme'"),
        ("acme:requests=", "'requests=' is no quota of 'acme'"),
        ("acme:requests=1 acme:tokens=1", "'acme' has two quotas"),
        ("acme:requests=1,requests_per_minute=2", "'acme' has two quotas for requests_per_minute"),
        ("acme:requests=0", "greater than or equal to 1"),
        ("acme:requests=many", "valid integer"),
        ("a/b:requests=1", "'a/b' is no valid name of a tenant"),
    ],
)
def test_a_mistake_in_a_line_is_named(line: str, sentence: str) -> None:
    with pytest.raises(UsageError, match="tenant_quotas.*" + sentence):
        load_settings(None, {"store": "s", "base": "b", "tenant_quotas": line}, {})


def test_what_is_printed_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('quota_storage = "redis://cache/1"\n' + _FILE)
    first = load_configuration(file, {}, {})
    file.write_text(as_toml(first))
    again = load_configuration(file, {}, {}).settings
    assert again.tenant_quotas == first.settings.tenant_quotas
    assert again.quota_storage == "redis://cache/1"
    secret = load_configuration(file, {"quota_storage": "redis://:hunter2@cache/1"}, {})
    assert "hunter2" not in as_toml(secret)


def test_a_mistake_in_a_table_is_named(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('store = "s"\nbase = "b"\n[tenant_quotas.acme]\nrpm = 1\n')
    with pytest.raises(
        UsageError, match=r"'tenant_quotas\.acme\.rpm' is no quota; quotas are: req"
    ):
        load_settings(file, {}, {})


def test_a_storage_must_be_one_that_is_known() -> None:
    with pytest.raises(UsageError, match=r"'quota_storage'.*redis://"):
        load_settings(None, {"store": "s", "base": "b", "quota_storage": "memory"}, {})
