"""That a server ends: known to everything that behaves differently then."""

from __future__ import annotations

from adapters.errors import ServerStopping


class Stopping:
    """`begun`: it has been told to stop, takes no new work from balancers, and lets every client's
    connection go after an answer. `cut`: its time is over, what still runs is ended with an error.
    """

    __slots__ = ("begun", "cut")

    def __init__(self) -> None:
        self.begun = False
        self.cut = False


def not_ready() -> ServerStopping:
    """What /readyz says."""
    return ServerStopping("the server is stopping: send requests to another one", retry_after=1)


def cut_off() -> ServerStopping:
    """What a request is told that is not finished in time."""
    return ServerStopping(
        "the server is stopping and could not finish this in time; send it again", retry_after=1
    )
