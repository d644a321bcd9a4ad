"""Waiting for a merged engine that a deployment needs."""

from __future__ import annotations

import time

from adapters.errors import (
    AccessError,
    AdapterNotLoadable,
    BaseMismatch,
    EngineStartFailed,
    ServerUnreachable,
)
from adapters.frozen import Lane
from server.cli.output import clean, note, one_line, progress
from server.cli.session import Session
from server.gateway.lane_models import DeploymentShown

_INTERVAL_S = 0.5
# After the server was told to start it: longer than a server needs to see a change of the store.
_PATIENCE_S = 10.0


def wait_for_engine(session: Session, shown: DeploymentShown) -> DeploymentShown:
    """The deployment once its engine is ready; raises EngineStartFailed if it does not start.

    Returns at once where there is nothing to wait for: another lane, or no server that tells us.
    """
    if shown.deployment.lane is not Lane.MERGED or shown.state in ("merging", "merge_failed"):
        return shown
    backend = session.backend()
    try:
        backend.prefetch(shown.label)
    except ServerUnreachable:
        return shown
    except (AccessError, AdapterNotLoadable, BaseMismatch) as error:
        # Of a server that runs on the store, but not for us: what was asked for is done.
        note(f"its engine's start is not awaited: {one_line(error.message)}")
        return shown
    with progress(json_mode=session.json) as shown_progress:
        shown_progress.step(f"starting the engine of {shown.label}")
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            shown = backend.deployment(shown.label)
            if shown.state == "starting":
                deadline = time.monotonic() + _PATIENCE_S
            elif shown.state == "failed":
                raise _failure(session, shown)
            # Idle or unknown: the server does not know of it yet, or does not serve its base.
            elif shown.state == "ready" or time.monotonic() > deadline:
                return shown
            time.sleep(_INTERVAL_S)


def _failure(session: Session, shown: DeploymentShown) -> EngineStartFailed:
    first, _, lines = shown.detail.strip().partition("\n")
    if lines and not session.json:
        note("the engine's log ends:")
        for line in lines.splitlines():
            note(f"  {clean(line)}")
    again = "" if shown.retry_after is None else f"; it is tried again in {shown.retry_after:.0f} s"
    return EngineStartFailed(
        f"the engine of {shown.label} does not start ({first or 'it does not say why'}){again}: "
        "`adapterctl deployments` says how it goes on, and the deployment stands"
    )
