"""The clients of S3, Google Cloud Storage and Azure Blob Storage, set up from the environment.

The endpoint is the operator's own word, so it is not judged as a URL's host is: a store in a
private network, or one that speaks plain http, is what it is there for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from adapters.errors import UsageError
from adapters.sources.policy import Policy

if TYPE_CHECKING:
    from obstore.store import (
        AzureConfig,
        AzureStore,
        ClientConfig,
        GCSConfig,
        GCSStore,
        RetryConfig,
        S3Config,
        S3Store,
    )

    Store = S3Store | GCSStore | AzureStore

# Longer than any download; silence is what ends one (the read time-out).
_WHOLE_REQUEST = timedelta(days=7)
_MAX_PAUSE = timedelta(seconds=15)


@dataclass(frozen=True, slots=True)
class Provider:
    """What differs between the providers, in words and variables."""

    bucket: str
    endpoints: tuple[str, ...]
    credentials: str


PROVIDERS = {
    "s3": Provider(
        "bucket",
        ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for what is "
        "public",
    ),
    "gs": Provider(
        "bucket",
        ("GOOGLE_BASE_URL",),
        "GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true for what is public",
    ),
    "az": Provider(
        "container",
        ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
        "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY, or "
        "AZURE_SKIP_SIGNATURE=true for what is public",
    ),
}


def open_store(
    scheme: str, bucket: str, policy: Policy, environment: Mapping[str, str] = os.environ
) -> Store:
    """A client for one bucket; nothing is asked yet. Raises UsageError for a bad endpoint."""
    from obstore.store import AzureStore, GCSStore, S3Store

    endpoint = _endpoint(PROVIDERS[scheme], environment)
    client: ClientConfig = {
        "allow_http": endpoint is not None and endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=policy.timeout),
        "read_timeout": timedelta(seconds=policy.timeout),
        "timeout": _WHOLE_REQUEST,
        "user_agent": "adapterctl",
    }
    retry: RetryConfig = {
        "max_retries": policy.attempts - 1,
        "retry_timeout": timedelta(seconds=policy.timeout * policy.attempts),
        "backoff": {
            "init_backoff": timedelta(seconds=policy.backoff),
            "max_backoff": _MAX_PAUSE,
            "base": 2,
        },
    }
    # Everything else the library takes from the environment itself.
    if scheme == "s3":
        s3: S3Config = {} if endpoint is None else {"endpoint": endpoint}
        return S3Store(bucket, config=s3, client_options=client, retry_config=retry)
    if scheme == "gs":
        gs: GCSConfig = {} if endpoint is None else {"base_url": endpoint}
        return GCSStore(bucket, config=gs, client_options=client, retry_config=retry)
    az: AzureConfig = {} if endpoint is None else {"endpoint": endpoint}
    return AzureStore(bucket, config=az, client_options=client, retry_config=retry)


def _endpoint(provider: Provider, environment: Mapping[str, str]) -> str | None:
    """Judged here because the library ends in a panic over some that are none."""
    for name in provider.endpoints:
        url = environment.get(name)
        if not url:
            continue
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname)
            usable = usable and parts.username is None and parts.port != 0
        except ValueError:
            usable = False
        if not usable or not url.isascii() or not url.isprintable() or " " in url:
            raise UsageError(f"{name} is no endpoint: write https://HOST or https://HOST:PORT")
        return url.rstrip("/")
    return None
