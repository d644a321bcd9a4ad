"""Whether one more engine fits, and which idle ones would have to go for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from server.engine.memory import MemoryPlan, gib


class Claim(Enum):
    """What an occupant's memory can be counted on for."""

    # Answering, starting or waited for; or kept by a pin.
    HELD = "held"
    PINNED = "pinned"
    # Nobody needs it, but somebody did a moment ago.
    RESTING = "resting"
    IDLE = "idle"
    # Its memory will be free soon, whatever is decided.
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True)
class Occupant:
    """An engine that has memory: planned `size` in bytes, last used at `used` (any clock)."""

    key: str
    name: str
    size: int
    claim: Claim
    used: float


@dataclass(frozen=True, slots=True)
class Room:
    """What there is for all engines: `limit` bytes, of which the base has `base`; `places`.

    `others`: bytes within the limit that other programs have taken meanwhile.
    """

    limit: int
    base: int
    places: int
    others: int = 0

    @property
    def share(self) -> int:
        """Bytes for merged engines, if none were up."""
        return self.limit - self.base - self.others


class Answer(Enum):
    """`FITS` now; `EVICT` first; `WAIT` until something leaves or has rested; `REFUSE`."""

    FITS = "fits"
    EVICT = "evict"
    WAIT = "wait"
    REFUSE = "refuse"


def fits(room: Room, occupants: Sequence[Occupant], size: int) -> bool:
    """Whether `size` more bytes stay within the limit, and one more engine within the places."""
    taken = sum(one.size for one in occupants)
    return taken + size <= room.share and len(occupants) < room.places


def make_room(
    room: Room, occupants: Sequence[Occupant], size: int
) -> tuple[Answer, list[Occupant]]:
    """What to do for an engine of `size` bytes; for EVICT with the engines to stop.

    Least recently used first, no more than needed, and nobody where that would not do.
    """
    if fits(room, occupants, size):
        return Answer.FITS, []
    staying = [one for one in occupants if one.claim is not Claim.LEAVING]
    if fits(room, staying, size):
        return Answer.WAIT, []
    idle = [one for one in staying if one.claim is Claim.IDLE]
    chosen = _fewest(room, staying, idle, size)
    if chosen is not None:
        return Answer.EVICT, chosen
    resting = [one for one in staying if one.claim is Claim.RESTING]
    if _fewest(room, staying, idle + resting, size) is not None:
        return Answer.WAIT, []
    return Answer.REFUSE, []


def _fewest(
    room: Room, staying: list[Occupant], candidates: list[Occupant], size: int
) -> list[Occupant] | None:
    gone: list[Occupant] = []
    for one in sorted(candidates, key=lambda o: o.used):
        if fits(room, _without(staying, gone), size):
            break
        gone.append(one)
    if not fits(room, _without(staying, gone), size):
        return None
    # A small one that was looked at first may not be needed any more.
    for one in list(gone):
        rest = [other for other in gone if other is not one]
        if fits(room, _without(staying, rest), size):
            gone = rest
    return gone


def _without(occupants: list[Occupant], gone: list[Occupant]) -> list[Occupant]:
    keys = {one.key for one in gone}
    return [one for one in occupants if one.key not in keys]


_WHY = {
    Claim.HELD: "in use",
    Claim.PINNED: "pinned",
    Claim.RESTING: "just used",
    Claim.IDLE: "idle",
    Claim.LEAVING: "stopping",
}


def refusal(room: Room, occupants: Sequence[Occupant], name: str, plan: MemoryPlan) -> str:
    """One sentence with the figures: what is needed, what is free, who has the rest."""
    holders = [f"{o.name} {gib(o.size)} ({_WHY[o.claim]})" for o in occupants]
    if room.limit == 0:
        return (
            f"the engine of {name} cannot be started beside the base's: how much memory the GPU "
            "has is not known; start the server with --device-memory-gib"
        )
    needs = f"the engine of {name} needs {gib(plan.total)} GiB ({plan})"
    others = f"other programs on this machine {gib(room.others)}" if room.others else ""
    if plan.total > room.limit - room.base:
        return (
            f"{needs}, and of {gib(room.limit)} GiB the base's engine leaves "
            f"{gib(max(0, room.limit - room.base))}: raise memory_gib, lower merged_kv_cache_gib, "
            "or requantize the model"
        )
    if len(occupants) >= room.places:
        return (
            f"the engine of {name} is one too many: merged_engines allows {room.places}, which "
            f"are {', '.join(holders) or 'none'}; raise it, or undeploy or unpin one"
        )
    free = max(0, room.share - sum(o.size for o in occupants))
    taken = [f"the base's engine has {gib(room.base)}", *holders, *filter(None, [others])]
    return (
        f"{needs}; {gib(free)} of {gib(room.limit)} GiB are free: {', '.join(taken)}; "
        f"{'end those' if room.others else 'raise memory_gib'}, or undeploy or unpin one"
    )
