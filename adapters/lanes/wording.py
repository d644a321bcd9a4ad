"""Deployments and routes in the words of histories and messages."""

from __future__ import annotations

from adapters.frozen import Lane
from adapters.lanes.models import Deployment, Route, Shadow, Split


def share_text(share: float) -> str:
    """0.025 -> `2.5 %`."""
    return f"{share * 100:.6g} %"


def deployment_text(deployment: Deployment) -> str | None:
    """`hot`, `merged (awq), pinned`, `merged (awq), no model yet`, `hot, quarantined`; None: not in
    service."""
    if deployment.lane is None:
        return None
    words = str(deployment.lane)
    if deployment.lane is Lane.MERGED:
        if deployment.requantize != "none":
            words += f" ({deployment.requantize})"
        if deployment.model is None:
            words += ", no model" if deployment.problem else ", no model yet"
    words += ", pinned" if deployment.pinned else ""
    return words + (", quarantined" if deployment.quarantined is not None else "")


def route_text(route: Route | None) -> str | None:
    """`v4 5 %, v5@merged 2.5 %, shadow v6 10 %`; None: nothing is routed."""
    if route is None:
        return None
    words = [split_text(split) for split in route.splits]
    words += [f"shadow {_target(shadow)} {share_text(shadow.share)}" for shadow in route.shadows]
    if route.splits and route.sticky == "user":
        words.append("by user")
    if route.splits and route.limits is None:
        words.append("not watched")
    return ", ".join(words)


def split_text(split: Split) -> str:
    """`v4@merged 5 %`, `v4 0 % and x-canary: 1`."""
    words = f"{_target(split)} {share_text(split.share)}"
    return words if split.header is None else f"{words} and {': '.join(split.header)}"


def _target(target: Split | Shadow) -> str:
    lane = "" if target.lane is None else f"@{target.lane}"
    return lane if target.follows and lane else f"v{target.number}{lane}"
