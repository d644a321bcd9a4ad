"""The click classes of adapterctl: global options at every place, commands loaded when named."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from server.cli.session import KEY_VARIABLE, SERVER_VARIABLE, STORE_VARIABLE, Session

CONTEXT = {"help_option_names": ["-h", "--help"]}


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    # Only what was given: `adapterctl --json ls` must not be undone by the default of `ls`.
    session = context.find_object(Session)
    if session is not None and value is not None and parameter.name is not None:
        setattr(session, parameter.name, value)


def global_options() -> list[click.Parameter]:
    """--store, --server and --json, as every command and group takes them."""
    return [
        click.Option(
            ["--store"],
            metavar="DIR",
            expose_value=False,
            callback=_remember,
            help=f"Work on the store in DIR. [env: {STORE_VARIABLE}]",
        ),
        click.Option(
            ["--server"],
            metavar="URL",
            expose_value=False,
            callback=_remember,
            help=f"Work over the admin API of the server at URL. [env: {SERVER_VARIABLE}; "
            f"key: {KEY_VARIABLE}]",
        ),
        click.Option(
            ["--json"],
            is_flag=True,
            default=None,
            expose_value=False,
            callback=_remember,
            help="Answer with one JSON document.",
        ),
    ]


class Command(click.Command):
    """A command that takes the global options after its name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", CONTEXT)
        super().__init__(*args, **kwargs)
        self.params.extend(global_options())


class Group(click.Group):
    """A group whose commands are imported when they are named, from one literal table.

    `table`: command name -> "module:attribute".
    """

    def __init__(self, *args: Any, table: Mapping[str, str], **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", CONTEXT)
        # A missing subcommand is reported like every other wrong usage: in one line.
        kwargs.setdefault("no_args_is_help", False)
        super().__init__(*args, **kwargs)
        self._table = dict(table)
        self.params.extend(global_options())

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = self._table.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command
