"""Writes deploy/grafana/dashboards/*.json: `python -m deploy.grafana.build`, after a change here.

A test compares what is written with what would be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana import adapter, engines, fleet, jobs
from deploy.grafana.panels import Board, built

BOARDS: Mapping[str, Board] = {
    "fleet": fleet.BOARD,
    "adapter": adapter.BOARD,
    "engines": engines.BOARD,
    "jobs": jobs.BOARD,
}
TARGET = Path(__file__).parent / "dashboards"


def text_of(board: Board) -> str:
    """The dashboard's file."""
    document = json.loads(JSONEncoder(sort_keys=True).encode(built(board)))
    # Links to a panel go by its number.
    for number, panel in enumerate(document["panels"], start=1):
        panel["id"] = number
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> None:
    """Write every file."""
    for name, board in BOARDS.items():
        (TARGET / f"{name}.json").write_text(text_of(board), encoding="utf-8")


if __name__ == "__main__":
    main()
