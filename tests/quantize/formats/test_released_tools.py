"""What autoawq and auto-gptq themselves wrote is read back as the model it was made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantize.formats.comparing import layer_errors
from tests.adapters.bases.quantized_dirs import AUTOAWQ, AUTOGPTQ, TRAINED


@pytest.mark.parametrize(("path", "most"), [(AUTOAWQ, 0.1), (AUTOGPTQ, 0.17)])
def test_the_error_is_that_of_four_bits(path: Path, most: float) -> None:
    """Measured: 8 to 10 % with zero points, 13 to 16 % symmetric; read wrong, it is above 1."""
    found = layer_errors(path, TRAINED)
    assert len(found) == 14
    assert all(0.05 < layer.error < most for layer in found)
