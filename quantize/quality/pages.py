"""How report pages are made of templates: style sheet and chart macro are shared by all of them."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from quantize.quality.drawing import printable

_TEMPLATES = Path(__file__).with_name("templates")


def pages(*folders: Path) -> Environment:
    """Templates of `folders`, then those here. Whatever is filled in is text, never markup."""
    return Environment(
        loader=FileSystemLoader([*folders, _TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Of what is printed, control characters are replaced; drawings have done so themselves.
        finalize=lambda v: printable(v) if type(v) is str else v,
    )
