"""Environments of their own for the tools that cannot share adapterctl's: made on first use."""

from quantize.environments.making import ensure

__all__ = ["ensure"]
