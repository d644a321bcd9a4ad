"""What was measured under a route, as tables for people."""

from __future__ import annotations

from server.cli.output import say, table
from server.cli.top_view import duration
from server.gateway.route_status import RouteStatus, ShadowStatus, SideStatus

_SIDES = ("", "requests", "failed", "first token", "per token", "degenerate", "verdict")
_SHADOWS = ("shadow", "copies", "dropped", "failed", "same answer", "time", "the real one's")


def say_measured(measured: RouteStatus) -> None:
    """The stable version and its canaries side by side, then the shadows."""
    sides = [one for one in (measured.stable, *measured.canaries) if one is not None]
    if sides:
        say("")
        table(_SIDES, [_side(one) for one in sides])
    if measured.shadows:
        say("")
        table(_SHADOWS, [_shadow(one) for one in measured.shadows])


def _side(one: SideStatus) -> list[str]:
    return [
        f"v{one.number} {one.lane}, {one.role.value}",
        str(one.requests),
        _of(one.errors, one.window),
        duration(one.first_token),
        duration(one.per_token),
        _of(one.degenerate, one.read),
        one.verdict,
    ]


def _shadow(one: ShadowStatus) -> list[str]:
    return [
        f"v{one.number} {one.lane}",
        str(one.sent),
        str(one.dropped),
        _of(one.errors, one.sent),
        _of(one.same, one.sent - one.errors),
        duration(one.seconds),
        duration(one.real_seconds),
    ]


def _of(count: int, total: int) -> str:
    return f"{count} of {total}" if total else "-"
