"""completion: the script that teaches a shell our commands."""

from __future__ import annotations

import click

from server.cli.main import COMPLETION_VARIABLE
from server.cli.options import Command
from server.cli.output import emit_json, say
from server.cli.session import Session, pass_session

SHELLS = ("bash", "zsh", "fish")


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(SHELLS))
@pass_session
def completion(session: Session, shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    bash: eval "$(adapterctl completion bash)" in ~/.bashrc
    zsh:  eval "$(adapterctl completion zsh)" in ~/.zshrc
    fish: adapterctl completion fish > ~/.config/fish/completions/adapterctl.fish
    """
    from click.shell_completion import get_completion_class

    from server.cli.app import root

    shell_class = get_completion_class(shell)
    assert shell_class is not None, "SHELLS lists what click knows"
    script = shell_class(root, {}, "adapterctl", COMPLETION_VARIABLE).source()
    if session.json:
        emit_json({"shell": shell, "script": script})
    else:
        say(script)
