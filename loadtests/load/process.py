"""The generator's own process: `python -m loadtests.load.process RECORDS` with an Order on stdin.

RECORDS gets one Record a line as requests end, and a Generator at the end.
"""

from __future__ import annotations

# First: Locust patches what everything after it imports.
from locust.env import Environment  # isort: skip

import logging
import sys
import time
from pathlib import Path
from typing import Any

import gevent
import numpy as np

from loadtests.load.order import Order
from loadtests.load.records import Generator, Record
from loadtests.load.users import Shared, user_classes

# How long requests that are under way may take to their end after the last was sent, beyond the
# scenario's timeout.
_GRACE = 5.0
_BEAT = 0.02
_PROGRESS = 5.0


class Beat:
    """Sleeps and looks how late it wakes: the lag that this process adds to what it measures."""

    def __init__(self) -> None:
        self.lags: list[float] = []

    def __call__(self) -> None:
        while True:
            before = time.monotonic()
            gevent.sleep(_BEAT)
            self.lags.append(time.monotonic() - before - _BEAT)


def generate(order: Order, records: Path) -> None:
    """The whole load, to its end."""
    with records.open("w", encoding="utf-8") as file:
        done = failed = 0

        def heard(record: Record) -> None:
            nonlocal done, failed
            done += 1
            failed += not record.ok
            file.write(record.model_dump_json() + "\n")

        shared = Shared(order, heard)
        classes = user_classes(shared)
        environment = Environment(user_classes=list(classes), host=order.url)
        faults: list[BaseException] = []
        user_error: Any = environment.events.user_error
        user_error.add_listener(lambda user_instance, exception, tb, **_: faults.append(exception))
        runner = environment.create_local_runner()
        users = sum(tenant.load.users for tenant in order.scenario.askers)
        runner.start(users, spawn_rate=users, wait=True)
        # A user counts from its greenlet's first breath on.
        while runner.user_count < users and not faults:
            gevent.sleep(0.01)
        beat = Beat()
        gevent.spawn(beat)
        cpu, start_unix = time.process_time(), time.time()
        shared.go()
        deadline = (order.scenario.end or float("inf")) + order.scenario.timeout + _GRACE
        told = 0.0
        while runner.user_count and not faults and shared.clock() < deadline:
            gevent.sleep(0.05)
            if shared.clock() - told >= _PROGRESS:
                told = shared.clock()
                sys.stdout.write(f"{told:.0f} s: {done} requests done, {failed} failed\n")
                sys.stdout.flush()
        ended = shared.clock()
        cpu = time.process_time() - cpu
        runner.quit()
        if faults:
            # Not a server's failure, which is an answer: ours.
            raise faults[0]
        lag = float(np.percentile(beat.lags, 99)) if beat.lags else 0.0
        generator = Generator(
            cpu_share=cpu / max(ended, 1e-9),
            lag_p99_ms=lag * 1e3,
            ended=ended,
            start_unix=start_unix,
        )
        file.write(generator.model_dump_json() + "\n")


def main() -> int:
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    generate(Order.model_validate_json(sys.stdin.read()), Path(sys.argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
