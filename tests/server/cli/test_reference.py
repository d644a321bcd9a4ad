"""The committed documentation is what the code says."""

from __future__ import annotations

from pathlib import Path

import click

from adapters.errors import AdapterctlError, error_classes
from server.cli.app import root
from server.cli.reference import cli_reference, error_reference

DOCS = Path(__file__).parents[3] / "docs"


def test_cli_reference_is_up_to_date() -> None:
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == cli_reference(), (
        "run: python -m server.cli.reference cli > docs/cli.md"
    )


def test_error_reference_is_up_to_date() -> None:
    assert (DOCS / "errors.md").read_text(encoding="utf-8") == error_reference(), (
        "run: python -m server.cli.reference errors > docs/errors.md"
    )


def test_every_error_says_what_it_means() -> None:
    for cls in error_classes():
        own = cls.__dict__.get("__doc__")
        assert own or cls is AdapterctlError, f"{cls.__name__} has no docstring"


def test_every_command_and_option_is_described() -> None:
    def check(command: click.Command, path: str) -> None:
        assert command.help, path
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{path} {parameter.opts}"
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None, name
                check(inner, f"{path} {name}")

    check(root, "adapterctl")
