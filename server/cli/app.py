"""The command tree: one row a command."""

from __future__ import annotations

import click

from server.cli.options import Group

COMMANDS = {
    "init": "server.cli.commands.store:init",
    "base": "server.cli.app:base",
    "register": "server.cli.commands.intake:register",
    "compose": "server.cli.commands.compose:compose",
    "merge": "server.cli.commands.merge:merge",
    "evaluate": "server.cli.commands.evaluate:evaluate",
    "jobs": "server.cli.commands.jobs:jobs",
    "inspect": "server.cli.commands.intake:inspect",
    "ls": "server.cli.commands.adapters:ls",
    "show": "server.cli.commands.adapters:show",
    "rm": "server.cli.commands.adapters:rm",
    "history": "server.cli.commands.tags:history",
    "tag": "server.cli.commands.tags:tag",
    "rollback": "server.cli.commands.tags:rollback",
    "deploy": "server.cli.commands.lanes:deploy",
    "undeploy": "server.cli.commands.lanes:undeploy",
    "deployments": "server.cli.commands.lanes:deployments",
    "route": "server.cli.commands.route:route",
    "pin": "server.cli.commands.lanes:pin",
    "unpin": "server.cli.commands.lanes:unpin",
    "quarantine": "server.cli.commands.lanes:quarantine",
    "prefetch": "server.cli.commands.lanes:prefetch",
    "serve": "server.cli.commands.serve:serve",
    "engines": "server.cli.commands.engines:engines",
    "residency": "server.cli.commands.top:residency",
    "top": "server.cli.commands.top:top",
    "advice": "server.cli.commands.top:advice",
    "keys": "server.cli.app:keys",
    "audit": "server.cli.commands.audit:audit",
    "doctor": "server.cli.commands.store:doctor",
    "gc": "server.cli.commands.store:gc",
    "verify": "server.cli.commands.store:verify",
    "backup": "server.cli.commands.backups:backup",
    "restore": "server.cli.commands.backups:restore",
    "export": "server.cli.commands.backups:export",
    "import": "server.cli.commands.backups:import_",
    "completion": "server.cli.commands.completion:completion",
}

BASE_COMMANDS = {
    "add": "server.cli.commands.bases:add",
    "ls": "server.cli.commands.bases:ls",
    "show": "server.cli.commands.bases:show",
    "rm": "server.cli.commands.bases:rm",
}

KEY_COMMANDS = {
    "create": "server.cli.commands.keys:create",
    "ls": "server.cli.commands.keys:ls",
    "revoke": "server.cli.commands.keys:revoke",
}


@click.group(cls=Group, table=COMMANDS, invoke_without_command=True)
@click.version_option(package_name="adapterctl", prog_name="adapterctl")
@click.pass_context
def root(context: click.Context) -> None:
    """Register LoRA adapters from any trainer and serve them on one shared base.

    Every command works on a store directly (--store) or over the admin API of a running
    server (--server).
    """
    if context.invoked_subcommand is None:
        if context.obj.json:
            raise click.UsageError("Missing command")
        click.echo(context.get_help())


@click.group(cls=Group, table=BASE_COMMANDS)
def base() -> None:
    """Register base models."""


@click.group(cls=Group, table=KEY_COMMANDS)
def keys() -> None:
    """Make, list and revoke API keys."""
