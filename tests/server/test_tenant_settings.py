"""What settings say of tenants: from a flag, the environment or the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import UsageError
from server.configuration import load_settings
from server.settings import ServeSettings
from server.tenant_settings import parse_tenant_adapters

NAME = st.text("abz019", min_size=1, max_size=6)


@given(st.dictionaries(NAME, st.lists(NAME, max_size=3), max_size=4))
def test_one_line_says_what_a_table_says(table: dict[str, list[str]]) -> None:
    line = " ".join(f"{tenant}={','.join(patterns)}" for tenant, patterns in table.items())
    assert parse_tenant_adapters(line) == {k: tuple(v) for k, v in table.items()}


def test_from_each_place(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('base = "tiny"\nstore = "s"\n[tenant_adapters]\nacme = ["a-*", "shared"]\n')
    expected = {"acme": ("a-*", "shared")}
    assert load_settings(file, {}, {}).tenant_adapters == expected
    flags = {"base": "tiny", "store": "s"}
    given_by = {"ADAPTERCTL_TENANT_ADAPTERS": "acme=a-*,shared"}
    assert load_settings(None, flags, given_by).tenant_adapters == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acme", "write acme=acme-"),
        ("a=x a=y", "'a' is there twice"),
        ("a/b=x", "is no valid name of a tenant"),
        ("acme=x:prod", "acme: 'x:prod' is no pattern"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_settings(None, {"base": "tiny", "store": "s", "tenant_adapters": text}, {})


def test_when_the_admin_api_needs_a_key() -> None:
    def needed(**settings: str) -> bool:
        return ServeSettings.model_validate(
            {"store": "s", "base": "tiny", **settings}
        ).admin_key_needed

    assert not needed()
    assert not needed(require_key="never")
    assert needed(require_key="always")
    assert needed(host="0.0.0.0")
    assert needed(host="0.0.0.0", require_key="never")
