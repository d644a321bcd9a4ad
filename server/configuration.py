"""Where settings come from: flags, environment, a TOML file; and what of it a server took.

A configuration can be read again while the server runs (SIGHUP): the flags and the environment are
those of its start, the file is the one on the disk.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from adapters.errors import UsageError
from server.quota_settings import TenantQuota
from server.settings import ENV_PREFIX, ServeSettings

# Settings of several values, which flags and the environment give as words.
LISTS = frozenset({"engine_arguments", "cors_origins"})
DEFAULT = "default"
# What a running server takes over on SIGHUP; everything else needs a restart.
RELOADED = frozenset(
    {
        "body_timeout",
        "client_templates",
        "drain_delay",
        "first_token_timeout",
        "header_timeout",
        "keep_alive_timeout",
        "log_level",
        "log_prompts",
        "max_body_bytes",
        "max_header_bytes",
        "max_headers",
        "max_in_flight",
        "merged_wait",
        "prefill_tokens",
        "queue_limit",
        "queue_limit_per_tenant",
        "queue_timeout",
        "request_timeout",
        "slot_patience",
        "stop_timeout",
        "tenant_adapters",
        "tenant_quotas",
        "tenant_weights",
        "tls_cert",
        "tls_key",
        "write_timeout",
    }
)


@dataclass(frozen=True, slots=True)
class Configuration:
    """Settings, and for each where it comes from: `flag --port`, `environment …`, the file."""

    settings: ServeSettings
    origins: Mapping[str, str]


def load_settings(
    file: Path | None,
    flags: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
) -> ServeSettings:
    """Merge file, environment and flags; UsageError names the key and what is wrong with it."""
    return load_configuration(file, flags, environment).settings


def load_configuration(
    file: Path | None,
    flags: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
) -> Configuration:
    """As `load_settings`, with the origin of every setting."""
    merged: dict[str, Any] = {}
    origins = dict.fromkeys(ServeSettings.model_fields, DEFAULT)
    if file is not None:
        merged.update(_read_file(file))
        origins.update(dict.fromkeys(merged, str(file)))
    for name in ServeSettings.model_fields:
        variable = ENV_PREFIX + name.upper()
        value = environment.get(variable)
        if value is not None:
            merged[name] = value.split() if name in LISTS else value
            origins[name] = f"environment {variable}"
    for name, value in flags.items():
        if value is not None:
            merged[name] = value
            origins[name] = f"flag {flag_of(name)}"
    return Configuration(_validated(merged), origins)


def flag_of(name: str) -> str:
    """The option of `adapterctl serve` that sets it."""
    # An option given once for each value is named in the singular.
    return "--" + (name.removesuffix("s") if name in LISTS else name).replace("_", "-")


def _validated(merged: dict[str, Any]) -> ServeSettings:
    try:
        return ServeSettings.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise UsageError(f"'{key}' is not set: give {flag_of(key)}") from None
        if first["type"] == "extra_forbidden" and len(first["loc"]) > 1:
            known = ", ".join(TenantQuota.model_fields)
            raise UsageError(f"'{key}' is no quota; quotas are: {known}") from None
        if first["type"] == "extra_forbidden":
            known = ", ".join(sorted(ServeSettings.model_fields))
            raise UsageError(f"'{key}' is no setting; the settings are: {known}") from None
        where = f"setting '{key}': " if key else ""
        raise UsageError(where + first["msg"].removeprefix("Value error, ")) from None


def _read_file(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the configuration {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the configuration {file} is not valid TOML: {error}") from None
