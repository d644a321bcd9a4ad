"""Settings of `adapterctl serve`: one frozen document, read once and passed in.

Precedence: a flag, then the environment (`ADAPTERCTL_` + the name in capitals), then the TOML
file, then the default. An unknown key in the file is an error. server/configuration.py reads them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from adapters.frozen import Frozen
from adapters.tenants import is_tenant
from server.quota_settings import StorageUrl, TenantQuotas
from server.setting_values import is_loopback, parse_weights, web_origin
from server.tenant_settings import check_tenant_adapters, parse_tenant_adapters

ENV_PREFIX = "ADAPTERCTL_"

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Weight = Annotated[float, Field(ge=0.01, le=1000)]
# auto: where it matters, which each setting's description says.
RequireKey = Literal["auto", "always", "never"]

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_TAKEN_HEADERS = frozenset({"authorization", "x-api-key", "host", "content-length", "content-type"})


class ServeSettings(Frozen):
    """Everything the server can be told. Descriptions are the documentation's text."""

    store: Path = Field(description="The store to serve from.")
    base: str = Field(description="The registered base that the engine runs.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    engine_url: str | None = Field(
        None,
        description="Use this running engine (http://… or unix:/path) instead of starting one.",
    )
    slots: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Adapters that can be active in one batch (vLLM's max-loras); default: by "
        "memory, 8 to 32 (on a GPU 8).",
    )
    max_rank: int | None = Field(
        None,
        ge=1,
        le=512,
        description="Highest rank the engine holds; default: from the registry, at least 16.",
    )
    cpu_adapters: int | None = Field(
        None,
        ge=1,
        description="Adapters the engine keeps in memory; default: from the registry and RAM.",
    )
    kv_cache_gib: int = Field(
        1, ge=1, description="Memory for the KV cache in whole GiB (CPU engine only)."
    )
    merged_engines: int = Field(
        4, ge=0, description="Engines of merged models that may be up at the same time; 0: none."
    )
    merged_kv_cache_gib: int = Field(
        1, ge=1, description="Memory for the KV cache of a merged engine in whole GiB."
    )
    merged_idle: float = Field(
        900,
        ge=0,
        le=86_400 * 365,
        description="Seconds without a request after which a merged engine is stopped; 0: never.",
    )
    merged_wait: Seconds = Field(
        120,
        description="Seconds that a request waits for the start of a merged engine, or until the "
        "base's is there again after a failure.",
    )
    merged_drain: Seconds = Field(
        300,
        description="Seconds that running requests get to end when their merged engine is not "
        "deployed any more.",
    )
    memory_gib: float | None = Field(
        None,
        gt=0,
        description="Memory in GiB for all engines together; default: 85 % of the machine's or "
        "container's, and no more than is free at the start.",
    )
    device_memory_gib: float | None = Field(
        None,
        gt=0,
        description="The GPU's memory in GiB; needed for merged engines on a GPU, and not used "
        "without one.",
    )
    max_model_len: int | None = Field(
        None, ge=1, description="Longest context in tokens; default: the base's own."
    )
    engine_arguments: tuple[str, ...] = Field(
        (), description="Further arguments for vLLM, appended as they are."
    )
    engine_start: Literal["standby", "fork", "spawn"] = Field(
        "standby",
        description="How engines start on a CPU: `standby` keeps a process (0.6 GiB) that only "
        "lacks the model, where memory allows; `fork` imports vLLM once for an engine's processes; "
        "`spawn` in each of them, as vLLM does by itself and as always with a GPU.",
    )
    tls_cert: Path | None = Field(
        None, description="Certificate chain (PEM) to serve HTTPS with; read again on SIGHUP."
    )
    tls_key: Path | None = Field(
        None, description="The certificate's private key (PEM), where it is in a file of its own."
    )
    tls_min_version: Literal["1.2", "1.3"] = Field(
        "1.2", description="The oldest version of TLS that clients may speak."
    )
    cors_origins: tuple[str, ...] = Field(
        (),
        description="Web pages of these origins may use the server from a browser, as "
        "`https://app.example.com`; `*`: of all. None: no browser lets another site's page do so.",
    )
    max_header_bytes: int = Field(
        64 * 1024, ge=1024, le=2**20, description="Largest request line and headers in bytes."
    )
    max_headers: int = Field(100, ge=8, le=10_000, description="Most headers of a request.")
    header_timeout: Seconds = Field(
        15, description="Seconds in which a request's headers must arrive, from its first byte."
    )
    body_timeout: Seconds = Field(
        30,
        description="Seconds in which a request's body must arrive, or 500 bytes of it for each.",
    )
    keep_alive_timeout: Seconds = Field(
        75, description="Seconds that a connection without a request is kept."
    )
    reuse_port: bool = Field(
        False, description="Share the port with other servers that set this, too (SO_REUSEPORT)."
    )
    take_over: bool = Field(
        False,
        description="Take the port from the server that listens there on the same store: once this "
        "one can answer, it takes the connections, and the other one finishes its requests.",
    )
    drain_delay: float = Field(
        0,
        ge=0,
        le=3600,
        description="Seconds for which a server told to stop still takes connections, while "
        "/readyz says 503: the time that a load balancer needs to see that.",
    )
    start_timeout: Seconds = Field(600, description="Seconds an engine may take to become ready.")
    stop_timeout: Seconds = Field(
        20, description="Seconds that running requests, then the engine, get to end on a stop."
    )
    hang_timeout: Seconds = Field(
        60,
        description="Seconds without a sign of life after which an engine is taken to hang, and "
        "started again; while it computes on a CPU, up to 300.",
    )
    write_timeout: Seconds = Field(
        60,
        description="Seconds in which a client must take what is sent to it; then it is cut off.",
    )
    connect_timeout: Seconds = Field(5, description="Seconds to connect to the engine.")
    first_token_timeout: Seconds = Field(
        300, description="Seconds a stream may wait for its first token."
    )
    request_timeout: Seconds = Field(1800, description="Seconds a whole request may take.")
    max_body_bytes: int = Field(
        32 * 1024 * 1024, ge=1024, description="Largest request body in bytes."
    )
    max_in_flight: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Answers that an engine works on at once; default: 12 for each thread of a CPU "
        "engine, at most 128; else 128. The rest waits in the gateway, in a fair order.",
    )
    prefill_tokens: int | None = Field(
        None,
        ge=1,
        description="Prompt tokens of one tenant that an engine reads at a time, or one prompt; "
        "half as many while other tenants are about; "
        "default: 256 for each thread of a CPU engine, else 8192.",
    )
    slot_patience: Seconds = Field(
        2,
        description="Seconds that requests to adapters in slots may pass one that waits for one.",
    )
    queue_limit: int = Field(
        1024, ge=0, le=100_000, description="Requests that wait for an engine at most; then 429."
    )
    queue_limit_per_tenant: int = Field(256, ge=0, le=100_000, description="Of one tenant at most.")
    queue_timeout: Seconds = Field(
        60, description="Seconds that a request waits for its turn at an engine; then 429."
    )
    max_compositions: int = Field(
        64,
        ge=0,
        description="Sums (`a*0.7+b*0.3`) that requests may have made and that are kept; 0: none.",
    )
    client_templates: bool = Field(
        False,
        description="Let requests bring a `chat_template`: a program that the engine then runs.",
    )
    canary_scores: bool = Field(
        True,
        description="Have the stable version score some answers of watched routes: finds nonsense.",
    )
    shadow_queue: int = Field(
        64, ge=1, le=10_000, description="Copies for shadows that wait at most; more are dropped."
    )
    shadow_busiest: int = Field(
        2, ge=0, description="Requests that an engine may have while it is sent a copy."
    )
    shadow_deadline: Seconds = Field(
        60, description="Seconds a copy waits at most, and those it then may take."
    )
    jobs_at_once: int = Field(
        1, ge=1, le=64, description="Jobs (merges and the like) that run at the same time."
    )
    metric_adapters: int = Field(
        500, ge=1, description="Adapters that get metric labels of their own; the rest: `other`."
    )
    metric_versions: int = Field(
        8, ge=1, description="Versions of an adapter that get metric labels of their own."
    )
    metric_tenants: int = Field(
        100, ge=1, description="Tenants that get metric labels of their own; the rest: `other`."
    )
    log_format: Literal["console", "json"] = Field(
        "console", description="Log lines for people, or one JSON document each."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least that is logged; `info` has a line for each request."
    )
    log_prompts: bool = Field(
        False, description="Write what clients sent (prompts, messages, input) into the log."
    )
    otlp_endpoint: str | None = Field(
        None,
        description="Send OpenTelemetry traces of gateway and engines to this OTLP/HTTP address, "
        "as `http://collector:4318`.",
    )
    otlp_sample: float = Field(
        1.0,
        ge=0,
        le=1,
        description="The share of requests that is traced where the client did not decide.",
    )
    tenant_weights: dict[str, Weight] = Field(
        {},
        description="Shares of tenants when there is not enough for all, as `acme=4 beta=1`, in "
        "the file a table; who is not named has 1.",
    )
    tenant_header: str | None = Field(
        None,
        description="The header in which a proxy says the tenant of a request. Whoever reaches the "
        "server can then be any tenant: only behind a proxy that sets it itself.",
    )
    tenant_quotas: TenantQuotas = Field(
        {},
        description="What tenants may use at most, as `acme:requests=60,tokens=10000,concurrent=4 "
        "*:requests=10` (a minute; at once), in the file a table for each; `*` is for all others.",
    )
    quota_storage: StorageUrl | None = Field(
        None,
        description="Where several servers count quotas together (redis://…, rediss://…, "
        "unix://…); default: each in its own memory.",
    )
    quota_storage_down: Literal["open", "closed"] = Field(
        "open",
        description="While that storage does not answer: `open` counts in each server's own "
        "memory, `closed` refuses with 503 who has a quota.",
    )

    tenant_adapters: dict[str, tuple[str, ...]] = Field(
        {},
        description="Patterns for the names that a tenant's requests may use at most, whatever its "
        "keys say, as `acme=acme-*,shared beta=beta-*`, in the file a table of lists; who is not "
        "named is limited by keys only.",
    )
    require_key: RequireKey = Field(
        "auto",
        description="Whether requests need an API key. `auto`: as soon as the registry has one, "
        "and always beyond loopback. `always`: the admin API and `/metrics` on loopback, too. "
        "`never`: only the admin API and `/metrics` beyond loopback do.",
    )
    tenant_cache_salt: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Keep each tenant's part of the engine's prefix cache apart, so that nobody "
        "learns from answer times what others have asked. `auto`: where tenants are told apart by "
        "keys or a proxy.",
    )
    open_metrics: bool = Field(
        False,
        description="Answer `/metrics` without a key beyond loopback: where only the monitoring "
        "reaches the port. It names every adapter and tenant.",
    )

    @field_validator("engine_url")
    @classmethod
    def _known_scheme(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://", "unix:")):
            raise ValueError("must start with http://, https:// or unix:")
        if value is not None and not value.startswith("unix:"):
            parts = urlsplit(value)
            # `port` raises for what is no number, or too large.
            if not parts.hostname or parts.port == 0:
                raise ValueError("must name a host, as in http://127.0.0.1:8000")
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _http_address(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _known_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(web_origin(origin) for origin in value)

    @model_validator(mode="after")
    def _both_of_tls(self) -> Self:
        if self.tls_key is not None and self.tls_cert is None:
            raise ValueError("'tls_key' is set and 'tls_cert' is not: HTTPS needs a certificate")
        return self

    @field_validator("tenant_weights", mode="before")
    @classmethod
    def _read_weights(cls, value: Any) -> Any:
        return parse_weights(value) if isinstance(value, str) else value

    @field_validator("tenant_weights")
    @classmethod
    def _known_tenants(cls, value: dict[str, float]) -> dict[str, float]:
        for tenant in value:
            if not is_tenant(tenant):
                raise ValueError(f"'{tenant[:80]}' is no valid name of a tenant")
        return value

    @field_validator("tenant_adapters", mode="before")
    @classmethod
    def _read_patterns(cls, value: Any) -> Any:
        return parse_tenant_adapters(value) if isinstance(value, str) else value

    @field_validator("tenant_adapters")
    @classmethod
    def _known_patterns(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        return check_tenant_adapters(value)

    @field_validator("tenant_header")
    @classmethod
    def _own_header(cls, value: str | None) -> str | None:
        if value is not None and not _HEADER.fullmatch(value):
            raise ValueError("must be the name of a header, for example x-tenant")
        if value is not None and value.lower() in _TAKEN_HEADERS:
            raise ValueError(f"'{value}' means something else already: take another header")
        return value

    @property
    def loopback_only(self) -> bool:
        """Whether only this machine can reach the server; beyond that, admin needs a key."""
        return is_loopback(self.host)

    @property
    def admin_key_needed(self) -> bool:
        """Whether the admin API and the metrics need a key from everybody."""
        return not self.loopback_only or self.require_key == "always"
