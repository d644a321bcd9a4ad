"""keys create, ls and revoke."""

from __future__ import annotations

import click

from adapters.tenants import DEFAULT_TENANT, INFERENCE, SCOPES, check_label, check_tenant
from server.cli.complete import key_ids
from server.cli.options import Command
from server.cli.output import clean, emit_json, local_time, note, say, table
from server.cli.session import Session, pass_session
from server.gateway.key_models import KeyRequest, KeyShown


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
    help="What it opens: inference for requests, admin for the admin API. Give the option once "
    "for each.  [default: inference]",
)
@pass_session
def create(session: Session, label: str, tenant: str, scopes: tuple[str, ...]) -> None:
    """Make an API key. Its secret is shown now and never again: only a hash of it is kept."""
    request = KeyRequest.model_validate(
        {
            "label": check_label(label),
            "tenant": check_tenant(tenant),
            "scopes": scopes or (INFERENCE,),
        }
    )
    made = session.backend().create_key(request)
    if session.json:
        emit_json(made.model_dump(mode="json"))
        return
    note(
        f"Key {made.id} of tenant {clean(made.tenant)} for {', '.join(made.scopes)}; "
        "its secret is not shown again:"
    )
    say(made.secret)


@click.command(cls=Command)
@pass_session
def ls(session: Session) -> None:
    """List the keys, revoked ones too."""
    keys = session.backend().keys()
    if session.json:
        emit_json([key.model_dump(mode="json") for key in keys])
    elif not keys:
        say("No key yet. Make one: adapterctl keys create --tenant NAME")
    else:
        table(("id", "tenant", "scopes", "created", "state", "label"), map(_row, keys))


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
    state = "usable" if key.revoked_at is None else f"revoked {local_time(key.revoked_at)}"
    return (key.id, key.tenant, ", ".join(key.scopes), local_time(key.created_at), state, key.label)
