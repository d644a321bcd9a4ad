"""The same users in Locust's own web page: `locust -f loadtests/locustfile.py --host URL`.

`--scenario` chooses the load. How many users there are and when it ends is Locust's to say here
(the page's fields; `--users`, `--run-time`): users belong to the scenario's tenants in turn, and
its warm-up, users and end do not count. `python -m loadtests.run` writes the report; this shows
Locust's figures, with the time to the first token as entries of their own.
"""

from __future__ import annotations

import itertools
import logging
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Locust puts the file's own folder on the path, not the one above it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gevent
from locust import events
from locust.env import Environment

from adapters.errors import AdapterctlError
from loadtests import scenarios
from loadtests.load.users import Member, OpenAIUser, Shared, members
from loadtests.running import order_for

# Locust ends it before. Seconds.
_A_DAY = 86_400.0


class ScenarioUser(OpenAIUser):
    """A user of the scenario that was chosen; of which tenant is decided when it comes."""

    abstract = False
    seats: Iterator[Member] | None = None

    def on_start(self) -> None:
        seats = type(self).seats
        if seats is not None:
            self.member = next(seats)
            super().on_start()


def options(parser: ArgumentParser, **_: Any) -> None:
    """What Locust does not ask itself."""
    parser.add_argument("--scenario", default="uniform", help="of loadtests/scenarios.toml")
    parser.add_argument("--models", default="", help="adapters, a,b,…; else as listed")
    parser.add_argument("--adapters", type=int, default=0, help="how many to choose among")
    secret: dict[str, Any] = {"is_secret": True}
    parser.add_argument("--api-key", default="", help="for all tenants", **secret)


def prepare(environment: Environment, **_: Any) -> None:
    """Ask the server what there is, and lay out the load."""
    given = environment.parsed_options
    assert given is not None
    ScenarioUser.seats = None
    try:
        scenario = scenarios.changed(
            scenarios.find(given.scenario), duration=_A_DAY, adapters=given.adapters or None
        )
        order = order_for(
            scenario,
            environment.host or "",
            models=[name for name in given.models.split(",") if name] or None,
            api_key=given.api_key or None,
        )
    except AdapterctlError as error:
        logging.getLogger(__name__).error(error.message)
        environment.process_exit_code = error.exit_code
        if given.headless and environment.runner is not None:
            # After the start that this is a part of; on the web page the next one may fare better.
            gevent.spawn_later(1, environment.runner.quit)
        return
    shared = Shared(order, heard=lambda record: None)
    shared.go()
    ScenarioUser.seats = itertools.cycle(members(shared))


# Not as decorators: they are not typed.
init_command_line_parser: Any = events.init_command_line_parser
init_command_line_parser.add_listener(options)
test_start: Any = events.test_start
test_start.add_listener(prepare)
