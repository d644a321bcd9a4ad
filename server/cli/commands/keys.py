"""keys create, ls and revoke."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from adapters.access import check_patterns
from adapters.errors import UsageError
from adapters.expiry import parse_expiry
from adapters.sources.uri import local_path
from adapters.tenants import (
    DEFAULT_TENANT,
    INFER,
    MAX_QUOTA,
    SCOPES,
    check_label,
    check_tenant,
)
from server.cli.complete import key_ids
from server.cli.options import Command
from server.cli.output import clean, emit_json, local_time, note, say, table
from server.cli.session import Session, pass_session
from server.gateway.key_models import KeyRequest, KeyShown, make_key

_LIMIT = click.IntRange(1, MAX_QUOTA)


@click.command(cls=Command)
@click.option("--label", default="", metavar="TEXT", help="What it is for, to tell keys apart.")
@click.option(
    "--tenant",
    default=DEFAULT_TENANT,
    show_default=True,
    metavar="NAME",
    help="Whose requests are made with it.",
)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    help="What it opens: infer for requests, register for registering adapters and moving their "
    "tags, admin for everything. Give the option once for each.  [default: infer]",
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="PATTERN",
    help="A name that it may use, or a pattern for names, as 'acme-*'; bases count as well. Give "
    "the option once for each.  [default: every name]",
)
@click.option(
    "--expires",
    metavar="WHEN",
    help="When it ends: 12h, 30d, 2w, or a date (UTC).  [default: never]",
)
@click.option("--requests-per-minute", type=_LIMIT, help="Requests it may begin in a minute.")
@click.option("--tokens-per-minute", type=_LIMIT, help="Tokens, of prompts and answers together.")
@click.option("--concurrent", type=_LIMIT, help="Requests that may run at the same time.")
@click.option(
    "--secret-file",
    type=click.Path(),
    metavar="FILE",
    help="Take the secret from FILE, where a secret manager put it, instead of making one; again "
    "is no error. It reads ak-, 12 hex digits, - and 43 random letters, digits, - or _.",
)
@pass_session
def create(
    session: Session,
    /,
    label: str,
    tenant: str,
    scopes: tuple[str, ...],
    adapters: tuple[str, ...],
    expires: str | None,
    secret_file: str | None,
    **quota: int | None,
) -> None:
    """Make an API key. Its secret is shown now and never again: only a hash of it is kept."""
    end = None if expires is None else parse_expiry(expires, datetime.now(UTC))
    request = KeyRequest.model_validate(
        {
            "label": check_label(label),
            "tenant": check_tenant(tenant),
            "scopes": scopes or (INFER,),
            "adapters": check_patterns(adapters),
            "expires_at": end,
            **quota,
        }
    )
    if secret_file is not None:
        # Never over a server: what is sent is what others could note down.
        kept = make_key(session.catalog(), request, _read_secret(secret_file))
        shown = KeyShown.model_validate(kept.model_dump(exclude={"secret"}))
        if session.json:
            emit_json(shown.model_dump(mode="json"))
        else:
            say(f"Key {shown.id} of tenant {clean(shown.tenant)} for {', '.join(shown.scopes)}.")
        return
    made = session.backend().create_key(request)
    if session.json:
        emit_json(made.model_dump(mode="json"))
        return
    note(
        f"Key {made.id} of tenant {clean(made.tenant)} for {', '.join(made.scopes)}; "
        "its secret is not shown again:"
    )
    say(made.secret)


def _read_secret(file: str) -> str:
    try:
        return local_path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the secret in {clean(file)} cannot be read: {error}") from None


@click.command(cls=Command)
@pass_session
def ls(session: Session) -> None:
    """List the keys, ended ones too."""
    keys = session.backend().keys()
    if session.json:
        emit_json([key.model_dump(mode="json") for key in keys])
    elif not keys:
        say("No key yet. Make one: adapterctl keys create --tenant NAME")
    else:
        head = ("id", "tenant", "scopes", "adapters", "quota", "created", "state", "label")
        table(head, map(_row, keys))


@click.command(cls=Command)
@click.argument("key_id", metavar="ID", shell_complete=key_ids)
@pass_session
def revoke(session: Session, key_id: str) -> None:
    """End key ID for good; again is no error."""
    key = session.backend().revoke_key(key_id)
    if session.json:
        emit_json(key.model_dump(mode="json"))
    else:
        say(f"Key {key.id} of tenant {clean(key.tenant)} is revoked.")


def _row(key: KeyShown) -> tuple[str, ...]:
    return (
        key.id,
        key.tenant,
        ", ".join(key.scopes),
        ", ".join(key.adapters) or "all",
        _quota(key),
        local_time(key.created_at),
        _state(key),
        key.label,
    )


def _state(key: KeyShown) -> str:
    if key.revoked_at is not None:
        return f"revoked {local_time(key.revoked_at)}"
    if key.expires_at is None:
        return "usable"
    over = key.expires_at <= datetime.now(UTC)
    return f"{'expired' if over else 'usable until'} {local_time(key.expires_at)}"


def _quota(key: KeyShown) -> str:
    """`60 requests/min, 4 at once`."""
    limits = (
        (key.requests_per_minute, "requests/min"),
        (key.tokens_per_minute, "tokens/min"),
        (key.concurrent, "at once"),
    )
    return ", ".join(f"{limit} {unit}" for limit, unit in limits if limit) or "unlimited"
