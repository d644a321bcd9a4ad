"""register and inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from adapters.errors import UsageError
from adapters.intake.alpha import check_alpha
from adapters.models import Approximate, Inspection, Registered
from adapters.serving.document import ServingChoice, defaults_from_user
from server.cli.backend import Watch
from server.cli.complete import adapter_names, base_names
from server.cli.options import Command
from server.cli.output import (
    clean,
    emit_json,
    fields,
    lane_text,
    progress,
    say,
    short_digest,
    style,
)
from server.cli.session import Session, pass_session

_TEXT_LIMIT = 256 * 1024
_SOURCE = click.argument("source", metavar="SOURCE", type=click.Path())
_PRIVATE = click.option(
    "--allow-private-urls",
    is_flag=True,
    help="Also download from addresses that are not on the public internet.",
)
_ON_SERVER = click.option(
    "--on-server",
    is_flag=True,
    help="With --server: SOURCE is a path on the server's machine; nothing is sent.",
)
_FORMAT = click.option(
    "--format", metavar="F", help="What the artifact is; by default found out from its files."
)


def _checked_alpha(
    context: click.Context, parameter: click.Parameter, value: float | None
) -> float | None:
    """Here too: JSON, on the way to a server, has no word for what is no number."""
    check_alpha(value)
    return value


_ALPHA = click.option(
    "--alpha",
    type=float,
    metavar="N",
    callback=_checked_alpha,
    help="The lora_alpha of the training, for an artifact that does not store it "
    "(loralib; verl's 0).",
)


class _Rank(click.ParamType[Approximate]):
    """A rank or `auto`."""

    name = "rank"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Approximate:
        """Whether an engine takes the rank is for the intake to say."""
        if value == "auto":
            return "auto"
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a rank nor auto", param, ctx)


_APPROXIMATE = click.option(
    "--approximate",
    type=_Rank(),
    metavar="RANK|auto",
    help="Make a plain LoRA of this rank out of a full fine-tune, for the hot lane: an "
    "approximation, whose error is reported. auto: of each module what stands above rounding.",
)


@click.command(cls=Command)
@_SOURCE
@click.option(
    "--name",
    required=True,
    metavar="NAME",
    shell_complete=adapter_names,
    help="The adapter to add a version to; a new name makes a new adapter.",
)
@click.option(
    "--base",
    required=True,
    metavar="BASE",
    shell_complete=base_names,
    help="The registered base it was trained on.",
)
@click.option("--tag", metavar="T", help="Also point this tag at it; `latest` always moves.")
@_FORMAT
@_ALPHA
@click.option(
    "--system-prompt",
    metavar="TEXT",
    help="System prompt for requests without one, or @FILE with it; an empty one takes away the "
    "artifact's.",
)
@click.option(
    "--chat-template",
    metavar="FILE",
    type=click.Path(),
    help="Jinja chat template in place of the base's; an empty file takes away the artifact's.",
)
@click.option(
    "--default",
    "defaults",
    multiple=True,
    metavar="KEY=VALUE",
    help="Sampling default for requests that do not say: temperature=0.2, max_tokens=256, "
    "stop='###', … Give the option once for each.",
)
@click.option(
    "--weights-only",
    is_flag=True,
    help="Take no chat template, generation defaults or system prompt out of the artifact.",
)
@click.option("--dry-run", is_flag=True, help="Check everything, register nothing.")
@_PRIVATE
@_ON_SERVER
@_APPROXIMATE
@pass_session
def register(
    session: Session,
    source: str,
    name: str,
    base: str,
    tag: str | None,
    format: str | None,
    alpha: float | None,
    system_prompt: str | None,
    chat_template: str | None,
    defaults: tuple[str, ...],
    weights_only: bool,
    dry_run: bool,
    allow_private_urls: bool,
    on_server: bool,
    approximate: Approximate | None,
) -> None:
    """Check the artifact SOURCE tensor by tensor against BASE and make it a version of NAME.

    SOURCE is a directory, a file or an archive (.zip, .tar, .tar.gz, .tgz), which is sent to the
    server with --server; https://HOST/PATH; s3://BUCKET/KEY, gs:// or az:// (an object or a
    prefix); or hf:OWNER/REPO[/FOLDER][@REV]. One file may be followed by #sha256=HEX. The same
    content again gives the same version. Chat template, generation defaults and system prompt are
    part of it where they are the adapter's own (docs/serving.md).
    """
    choice = ServingChoice(
        system_prompt=_text(system_prompt),
        chat_template=None if chat_template is None else _file_text(chat_template),
        defaults=defaults_from_user(list(defaults)),
        weights_only=weights_only,
    )
    try:
        with progress(json_mode=session.json) as shown:
            registered = session.backend().register(
                source,
                name=name,
                base=base,
                tag=tag,
                format=format,
                alpha=alpha,
                serving=choice,
                dry_run=dry_run,
                watch=Watch(shown.step, shown.advance),
                allow_private_urls=allow_private_urls,
                on_server=on_server,
                approximate=approximate,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "interrupted: nothing is half done, the same command can simply be run again"
        ) from None
    if session.json:
        emit_json(registered.model_dump(mode="json"))
    else:
        say_registered(registered, dry_run=dry_run)


@click.command(cls=Command)
@_SOURCE
@click.option(
    "--base",
    metavar="BASE",
    shell_complete=base_names,
    help="Check it against this base only; by default against every registered one.",
)
@_FORMAT
@_ALPHA
@_PRIVATE
@_ON_SERVER
@_APPROXIMATE
@pass_session
def inspect(
    session: Session,
    source: str,
    base: str | None,
    format: str | None,
    alpha: float | None,
    allow_private_urls: bool,
    on_server: bool,
    approximate: Approximate | None,
) -> None:
    """Say what the artifact SOURCE is, how it would be served and what is wrong with it.

    SOURCE is what `adapterctl register` takes. Registers nothing. Exits 0 also when the artifact
    has problems: saying so is the answer.
    """
    with progress(json_mode=session.json) as shown:
        found = session.backend().inspect(
            source,
            format=format,
            alpha=alpha,
            base=base,
            watch=Watch(shown.step, shown.advance),
            allow_private_urls=allow_private_urls,
            on_server=on_server,
            approximate=approximate,
        )
    if session.json:
        emit_json(found.model_dump(mode="json"))
    else:
        _say_inspection(found)


def _text(value: str | None) -> str | None:
    """An option's text, or with @ before it the file that holds it."""
    return _file_text(value[1:]) if value is not None and value.startswith("@") else value


def _file_text(name: str) -> str:
    path = Path(name).expanduser()
    try:
        with path.open("rb") as file:
            data = file.read(_TEXT_LIMIT + 1)
        if len(data) > _TEXT_LIMIT:
            raise UsageError(f"{path} is larger than {_TEXT_LIMIT} bytes: is it the right file?")
        return data.decode("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None


def say_registered(registered: Registered, *, dry_run: bool) -> None:
    version = f"{registered.name}:{registered.version}"
    if dry_run:
        say(f"{version} could be registered; nothing was changed (--dry-run)")
    elif registered.created:
        say(f"Registered {version}")
    else:
        say(f"{version} is there already with this very content")
    fields(
        [
            ("digest", short_digest(registered.digest)),
            ("base", registered.base),
            ("format", registered.format),
            ("method", registered.method),
            ("rank", "-" if registered.rank is None else str(registered.rank)),
            ("lane", lane_text(registered.lane, approximate=registered.approximate)),
            ("tags", ", ".join(registered.tags) or "-"),
            *(("reason", reason) for reason in registered.reasons),
        ]
    )


def _say_inspection(found: Inspection) -> None:
    fields(
        [
            ("format", found.format or "unknown"),
            ("method", found.method or "unknown"),
            ("rank", "-" if found.rank is None else str(found.rank)),
            ("base", found.base or "none of the registered ones"),
            ("trained on", found.base_by_trainer or "-"),
            ("trainer", found.trainer or "-"),
            ("precision", found.precision or "-"),
            ("targets", ", ".join(found.targets) or "-"),
            ("lane", lane_text(found.lane or "-", approximate=found.approximate)),
            *(("brings", line) for line in found.brings),
            *(("reason", reason) for reason in found.reasons),
        ]
    )
    for problem in found.problems:
        say(f"{style('problem', fg='red')}  {clean(problem)}")
    if not found.problems:
        say("No problems: adapterctl register would take it.")
