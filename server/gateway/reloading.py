"""SIGHUP: the settings are read again, and what can change while the server runs does.

What is read is what a start would read: the same flags and environment, the file as it is now. A
mistake in it changes nothing. What only a start can change is said, and stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from adapters.errors import AdapterctlError
from server.configuration import RELOADED
from server.setting_values import shown
from server.settings import ServeSettings

log = logging.getLogger(__name__)

Apply = Callable[[ServeSettings], None]


class Reloading:
    """The settings that hold now."""

    def __init__(
        self,
        settings: ServeSettings,
        read: Callable[[], ServeSettings],
        apply: Sequence[Apply],
    ):
        """`apply` are given the settings after each reading, changed or not: a certificate's file
        has new content under its old name."""
        self.settings = settings
        self._read = read
        self._apply = apply

    def reload(self) -> None:
        """Read and apply; what is wrong goes into the log, and nothing is raised."""
        try:
            new = self._read()
        except AdapterctlError as error:
            log.error("the settings stay as they were: %s", error.message)
            return
        old = self.settings
        changed = [name for name in type(old).model_fields if _of(new, name) != _of(old, name)]
        live = {name: _of(new, name) for name in changed if name in RELOADED}
        settings = old.model_copy(update=live)
        for apply in self._apply:
            try:
                apply(settings)
            except AdapterctlError as error:
                log.error("not everything could be read again: %s", error.message)
        self.settings = settings
        for name, value in live.items():
            before = shown(_of(old, name))
            log.info("setting '%s' was %s and is %s", name, before, shown(value))
        for name in changed:
            if name not in RELOADED:
                log.warning("setting '%s' has changed, which needs a restart", name)
        log.info("read the settings again: %d of them changed", len(changed))


def _of(settings: ServeSettings, name: str) -> object:
    return getattr(settings, name)
