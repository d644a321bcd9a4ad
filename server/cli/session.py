"""What one command line works on: which store or server, and how it answers."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapters.errors import UsageError

if TYPE_CHECKING:
    from adapters.catalog import Catalog
    from server.cli.backend import Backend

STORE_VARIABLE = "ADAPTERCTL_STORE"
SERVER_VARIABLE = "ADAPTERCTL_URL"
KEY_VARIABLE = "ADAPTERCTL_KEY"


@dataclass
class Session:
    """The global options, wherever they stood on the line, and the backend they lead to."""

    json: bool = False
    store: str | None = None
    server: str | None = None
    # What a command that has printed its answer wants to exit with (`verify`, `doctor`).
    exit_code: int = 0
    _backend: Backend | None = field(default=None, repr=False)

    @property
    def remote(self) -> bool:
        """Whether the commands go to a server's admin API."""
        return self.server_url() is not None

    def server_url(self) -> str | None:
        """The server to talk to, None for the store; a flag beats the environment."""
        if self.store is not None and self.server is not None:
            raise UsageError("--store and --server exclude each other: give one of them")
        if self.server is not None:
            return self.server
        if self.store is not None:
            return None
        return os.environ.get(SERVER_VARIABLE) or None

    def store_root(self) -> Path:
        """The store that is named, or the user's own one."""
        if self.store is not None:
            if not self.store:
                raise UsageError("--store is empty: give a directory")
            return Path(self.store).absolute()
        named = os.environ.get(STORE_VARIABLE)
        return Path(named).absolute() if named else default_store()

    def local_root(self) -> Path | None:
        """The store's directory if this command line is about a local one; never raises."""
        try:
            return None if self.remote else self.store_root()
        except (UsageError, OSError):
            return None

    def backend(self) -> Backend:
        """The store or the server, opened at the first use."""
        if self._backend is None:
            url = self.server_url()
            if url is not None:
                from server.cli.remote import RemoteBackend

                self._backend = RemoteBackend(url, os.environ.get(KEY_VARIABLE) or None)
            else:
                from server.cli.local import LocalBackend

                self._backend = LocalBackend(self.store_root())
        return self._backend

    def catalog(self) -> Catalog:
        """The store, for commands that work on its files; UsageError where it is a server's."""
        from server.cli.local import LocalBackend

        backend = None if self.remote else self.backend()
        if not isinstance(backend, LocalBackend):
            raise UsageError(
                "this works on the store's own files: run it on the server's machine with --store "
                "instead of --server; the server may go on meanwhile"
            )
        return backend.catalog

    def close(self) -> None:
        """Release what `backend` opened."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None


def default_store() -> Path:
    """$XDG_DATA_HOME/adapterctl, by default ~/.local/share/adapterctl."""
    data = os.environ.get("XDG_DATA_HOME", "")
    # The XDG specification: a relative path there is to be ignored.
    root = Path(data) if data.startswith("/") else Path.home() / ".local" / "share"
    return root / "adapterctl"


def session_of(context: click.Context) -> Session:
    """The Session of the running command line."""
    session = context.find_object(Session)
    assert session is not None, "root is always invoked with a Session"
    return session


pass_session = click.make_pass_decorator(Session)
