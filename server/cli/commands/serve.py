"""serve: the server itself, in the foreground. Every setting is an option."""

from __future__ import annotations

import os
import sys
import tomllib
import typing
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click
from pydantic.fields import FieldInfo

from adapters.errors import UsageError
from server.cli.complete import base_names
from server.cli.options import Command
from server.cli.output import emit_json
from server.cli.session import STORE_VARIABLE, Session, default_store, pass_session
from server.configuration import LISTS, Configuration, flag_of, load_configuration
from server.settings import ENV_PREFIX, ServeSettings


def _setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """One option a setting. Their defaults stay with the settings: a flag that is not given
    must not beat the environment or the configuration file."""
    for name, field in reversed(ServeSettings.model_fields.items()):
        if name != "store":  # a global option
            command = _option(name, field)(command)
    return command


def _option(name: str, field: FieldInfo) -> Callable[[Callable[..., None]], Callable[..., None]]:
    variable = f"env: {ENV_PREFIX}{name.upper()}"
    if name in LISTS:
        return click.option(
            flag_of(name),
            name,
            multiple=True,
            metavar=name.rpartition("_")[2].removesuffix("s").upper(),
            help=f"{field.description} Give the option once for each. [{variable}]",
        )
    if field.annotation is bool:
        flag = name.replace("_", "-")
        # Both spellings: a flag has to be able to beat the environment either way.
        return click.option(
            f"--{flag}/--no-{flag}",
            name,
            default=None,
            help=f"{field.description} [default: {'on' if field.default else 'off'}; {variable}]",
        )
    known = not field.is_required() and field.default not in (None, {})
    return click.option(
        flag_of(name),
        name,
        type=_type(field),
        help=f"{field.description} [{f'default: {field.default}; ' if known else ''}{variable}]",
        metavar=name.rpartition("_")[2].upper(),
        shell_complete=base_names if name == "base" else None,
    )


def _type(field: FieldInfo) -> type[int] | type[float] | type[str]:
    """What click should read; bounds are the settings' business."""
    kinds = {field.annotation, *typing.get_args(field.annotation)}
    if int in kinds:
        return int
    return float if float in kinds else str


@click.command(cls=Command)
@click.option("--config", metavar="FILE", type=click.Path(), help="Settings in a TOML file.")
@click.option(
    "--print-config",
    is_flag=True,
    help="Print the settings as they would hold, as a file for --config, and start nothing.",
)
@_setting_options
@pass_session
def serve(session: Session, /, config: str | None, print_config: bool, **flags: Any) -> None:
    """Serve BASE and every adapter registered for it, until Ctrl-C.

    A flag beats the environment, which beats the configuration file. With --json what the
    server says goes to stderr, and stdout gets one document when it has ended.
    """
    if session.server is not None:
        raise UsageError("--server is for the other commands: serve starts one on a --store")
    file = None if config is None else Path(config)
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    given.update(_store(session, file))
    configuration = load_configuration(file, given)
    if print_config:
        _print(session, configuration)
        return
    from server.gateway.serve import run

    def read() -> ServeSettings:
        return load_configuration(file, given).settings

    settings = configuration.settings
    if not session.json:
        run(settings, read)
        return
    with redirect_stdout(sys.stderr):
        run(settings, read)
    emit_json({"store": str(settings.store), "base": settings.base, "state": "stopped"})


def _print(session: Session, configuration: Configuration) -> None:
    from server.printed import as_document, as_toml

    if session.json:
        emit_json(as_document(configuration))
    else:
        click.echo(as_toml(configuration), nl=False)


def _store(session: Session, file: Path | None) -> dict[str, Path]:
    """The store if a flag names it, or if nothing does."""
    if session.store is not None:
        return {"store": session.store_root()}
    if os.environ.get(STORE_VARIABLE) or (file is not None and _names_store(file)):
        return {}
    return {"store": default_store()}


def _names_store(file: Path) -> bool:
    try:
        return "store" in tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # load_settings says what is wrong with it
