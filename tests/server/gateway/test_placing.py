"""Which references this server answers, and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.errors import AdapterNotLoadable
from adapters.store.layout import StoreLayout
from server.engine.engines import Engine
from server.gateway.placing import Placing
from server.gateway.target import Asked, target_of
from tests.server.gateway.scripted import Gateway, base_record


def placing(engine: Engine, *, quantized: bool = False) -> Placing:
    return Placing(base_record(), engine, StoreLayout(Path("/nowhere")), quantized=quantized)


def test_on_a_quantized_base_an_adapter_of_another_base_is_told_what_to_do(
    gateway: Gateway,
) -> None:
    resolved = gateway.state.snapshot().resolve("elsewhere")
    asked = Asked("r-1", {}, {})
    plain = placing(gateway.state.engine)
    with pytest.raises(AdapterNotLoadable, match=r"this server runs 'tiny'$"):
        target_of(plain, resolved, asked)
    quantized = placing(gateway.state.engine, quantized=True)
    with pytest.raises(AdapterNotLoadable, match=r"quantized .* register .* \(`--base tiny`\)"):
        target_of(quantized, resolved, asked)
