"""compose."""

from __future__ import annotations

import click

from adapters.compositions import CompositionMethod, Recipe, parse_part
from adapters.errors import UsageError
from server.cli.backend import Watch
from server.cli.commands.intake import say_registered
from server.cli.complete import adapter_names, references
from server.cli.options import Command
from server.cli.output import emit_json, progress
from server.cli.session import Session, pass_session


@click.command(cls=Command)
@click.argument("name", metavar="NEW", shell_complete=adapter_names)
@click.argument(
    "parts", metavar="REF=WEIGHT...", nargs=-1, required=True, shell_complete=references
)
@click.option(
    "--method",
    type=click.Choice([method.value for method in CompositionMethod]),
    default=CompositionMethod.SUM.value,
    show_default=True,
    help="sum is exact; ties and dare thin each adapter out first.",
)
@click.option(
    "--rank",
    type=click.IntRange(1, 512),
    metavar="R",
    help="Cut the result to this rank; by default as many as its parts have together.",
)
@click.option(
    "--density",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="D",
    help="Share of each adapter's values that ties and dare keep.  [default: 0.5]",
)
@click.option(
    "--seed", type=click.IntRange(0), metavar="N", help="Which values dare drops.  [default: 0]"
)
@click.option("--tag", metavar="T", help="Also point this tag at it; `latest` always moves.")
@click.option("--dry-run", is_flag=True, help="Compute everything, register nothing.")
@pass_session
def compose(
    session: Session,
    name: str,
    parts: tuple[str, ...],
    method: str,
    rank: int | None,
    density: float | None,
    seed: int | None,
    tag: str | None,
    dry_run: bool,
) -> None:
    """Put adapters of one base together and make the result a version of NEW.

    Each is a reference and its weight: `compose bot german=0.7 polite=0.3`. A sum is exact, its
    rank that of its parts together; with --rank, ties or dare the result is approximate and says
    how much. Requests can ask for exact sums directly: `"model": "german*0.7+polite*0.3"`.
    """
    recipe = _recipe(method, rank, density, seed)
    try:
        with progress(json_mode=session.json) as shown:
            registered = session.backend().compose(
                [parse_part(part) for part in parts],
                recipe,
                name=name,
                tag=tag,
                dry_run=dry_run,
                watch=Watch(shown.step, shown.advance),
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "interrupted: nothing is half done, the same command can simply be run again"
        ) from None
    if session.json:
        emit_json(registered.model_dump(mode="json"))
    else:
        say_registered(registered, dry_run=dry_run)


def _recipe(method: str, rank: int | None, density: float | None, seed: int | None) -> Recipe:
    if method == CompositionMethod.SUM and density is not None:
        raise UsageError("--density is for --method ties and dare: a sum keeps every value")
    if method != CompositionMethod.DARE and seed is not None:
        raise UsageError("--seed is for --method dare: nothing else draws at random")
    return Recipe(
        method=CompositionMethod(method),
        rank=rank,
        density=0.5 if density is None else density,
        seed=seed or 0,
    )
