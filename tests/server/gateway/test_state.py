"""Which references this server answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapters.errors import AdapterNotLoadable
from server.gateway.state import target_of
from tests.server.gateway.scripted import Gateway


def test_on_a_quantized_base_an_adapter_of_another_base_is_told_what_to_do(
    gateway: Gateway,
) -> None:
    resolved = gateway.state.snapshot().resolve("elsewhere")
    with pytest.raises(AdapterNotLoadable, match=r"this server runs 'tiny'$"):
        target_of(gateway.state, resolved)
    with pytest.raises(AdapterNotLoadable, match=r"quantized .* register .* \(`--base tiny`\)"):
        target_of(replace(gateway.state, quantized=True), resolved)
