"""Kills a process at every step of an action and looks what is left. Run by test_crash.

argv: a scratch directory, the action, the stride between kill points. Writes a JSON summary to
stdout. Imports everything once, then forks a child for each kill, so that a kill costs
milliseconds. A kill point comes before every file-system call that Python audits, every fsync,
every SQL statement, every commit and every `on_step`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from sqlalchemy import Engine, event

# For the warm-up only: the children must find them imported.
import adapters.registry.keys
import adapters.registry.migrate
import adapters.registry.upkeep
import adapters.registry.verifying
import adapters.registry.versions
import adapters.registry.writer
import adapters.store.gc  # noqa: F401
from adapters.catalog import Catalog
from adapters.errors import StoreNotFound
from tests.adapters.registry.small_intake import WEIGHTS, SmallIntake, write_base, write_source

EVENTS = ("open", "os.", "shutil.", "fcntl.", "sqlite3.", "tempfile.")
RANDOM_KILLS = 25


class KillPoints:
    """Counts kill points in this process and kills it at the `at`-th; 0 never kills."""

    def __init__(self, at: int):
        self.at = at
        self.count = 0

    def reach(self, *_: object, **__: object) -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        sys.addaudithook(lambda name, _: self.reach() if name.startswith(EVENTS) else None)
        for moment in ("before_cursor_execute", "after_cursor_execute", "commit"):
            event.listen(Engine, moment, self.reach)
        fsync = os.fsync

        def counted_fsync(descriptor: int) -> None:
            self.reach()
            fsync(descriptor)

        os.fsync = counted_fsync  # type: ignore[assignment]


class Scene:
    """One store, and what is done to it before, during and after a kill."""

    def __init__(self, scratch: Path):
        self.root = scratch / "store"
        self.scratch = scratch
        self.base = write_base(scratch / "small")
        self.source = str(write_source(scratch / "first", 1))
        self.second = str(write_source(scratch / "second", 2))
        self.init()

    def open(self) -> Catalog:
        return Catalog.open(self.root, intake=SmallIntake())

    def init(self) -> None:
        with Catalog.init(self.root, intake=SmallIntake()) as catalog:
            catalog.base_add("small", self.base)

    def register(self, points: KillPoints) -> None:
        with self.open() as catalog:
            catalog.register(
                self.second, name="bot", base="small", tag="prod", on_step=points.reach
            )

    def prepare(self, action: str) -> None:
        """The state in which every child starts: `bot` at v-something with the first content."""
        if action == "init":
            shutil.rmtree(self.root)
            return
        with self.open() as catalog:
            if [a.name for a in catalog.adapters()] == ["bot"]:
                catalog.rm("bot", force=True)
            catalog.gc()
            done = catalog.register(self.source, name="bot", base="small", tag="prod")
            if action == "repair":
                done = catalog.register(self.second, name="bot", base="small")
                (catalog.layout.blob(done.digest) / WEIGHTS).unlink()
            if action == "gc":
                catalog.register(self.second, name="bot", base="small", tag="prod")
                catalog.rm("bot:v" + str(min(catalog.adapter("bot").versions)))

    def act(self, action: str, points: KillPoints) -> None:
        if action in ("register", "repair"):
            self.register(points)
        elif action == "gc":
            with self.open() as catalog:
                catalog.gc()
        elif action == "init":
            Catalog.init(self.root, intake=SmallIntake()).close()
        else:
            raise AssertionError(action)

    def check(self, action: str) -> str:
        """After the kill: nothing listed is broken, and the same again succeeds.

        Returns on which side of the registry's commit the kill was.
        """
        if action == "init":
            return self.check_init()
        with self.open() as catalog:
            problems = catalog.verify().problems
            # What `repair` starts from is damage: there it may still be.
            assert problems == () or action == "repair", problems
            record = catalog.adapter("bot")
            outcome = "after" if len(record.versions) == 2 else "before"
            if action == "register":
                # One transaction: both tags moved with the version, or nothing did.
                assert set(record.tags.values()) == {max(record.versions)}, record
            if action != "gc":
                done = catalog.register(self.second, name="bot", base="small", tag="prod")
                assert done.created == (outcome == "before")
                assert done.tags == ("latest", "prod")
                assert catalog.show("bot:prod").digest == done.digest
            catalog.gc()
            report = catalog.verify()
            assert (report.problems, report.orphans) == ((), ()), report
            assert list(catalog.layout.staging.iterdir()) == []
            assert len(catalog.layout.stored_digests()) == len(catalog.adapter("bot").versions)
        return outcome

    def check_init(self) -> str:
        outcome = "after"
        try:
            self.open().close()
        except StoreNotFound:
            outcome = "before"
        self.init()
        with self.open() as catalog:
            catalog.register(self.source, name="bot", base="small")
            assert catalog.verify().ok
        return outcome


def in_child(scene: Scene, action: str, at: int) -> int:
    """Forks, acts with a kill at point `at`; returns the child's pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        points = KillPoints(at)
        points.install()
        scene.act(action, points)
        status = 0
    except BaseException as error:  # noqa: BLE001 (it must not return into the parent's loop)
        os.write(2, f"{action} at {at}: {error!r}\n".encode())
    finally:
        os._exit(status)


def killed(pid: int) -> bool:
    """Waits; True if the child was killed, False if it finished. Anything else is a failure."""
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the action failed by itself"
    return False


def main() -> None:
    """Kills at every stride-th point until the action gets through, then at random times."""
    scratch, action, stride = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    scene = Scene(scratch)
    outcomes = {"before": 0, "after": 0}
    point = 1
    duration = 0.0
    while True:
        scene.prepare(action)
        start = time.monotonic()
        if not killed(in_child(scene, action, point)):
            duration = time.monotonic() - start
            break
        outcomes[scene.check(action)] += 1
        point += stride
    at_points = sum(outcomes.values())
    chance = random.Random(7)
    for _ in range(RANDOM_KILLS if stride == 1 else 0):
        scene.prepare(action)
        pid = in_child(scene, action, 0)
        time.sleep(chance.uniform(0, duration))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        killed(pid)
        outcomes[scene.check(action)] += 1
    json.dump({"points": point, "killed": at_points, **outcomes}, sys.stdout)


if __name__ == "__main__":
    main()
