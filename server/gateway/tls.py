"""HTTPS: the certificate, and another one in its place without anybody noticing.

Each handshake asks which context holds now (the hook that servers of many names use, which OpenSSL
calls whether or not the client names one), so a renewed certificate is used by the next connection
and never mixed with the old one's key.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from adapters.errors import UsageError

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class Tls:
    """The server's TLS context."""

    def __init__(self, cert: Path, key: Path | None, oldest: str):
        """`key` None: it is in the certificate's file. Raises UsageError."""
        self._oldest = oldest
        self._holds = self._loaded(cert, key)
        self.context = self._loaded(cert, key)
        self.context.sni_callback = self._choose

    def reload(self, cert: Path, key: Path | None) -> None:
        """Read the files again; raises UsageError, and then all is as it was."""
        self._holds = self._loaded(cert, key)

    def _choose(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        connection.context = self._holds

    def _loaded(self, cert: Path, key: Path | None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _VERSIONS[self._oldest]
        try:
            # The password is asked for nowhere: a server starts without a person.
            context.load_cert_chain(cert, key, password=_no_password)
        except FileNotFoundError:
            missing = cert if not cert.exists() else key
            raise UsageError(f"the TLS file {missing} does not exist") from None
        except ssl.SSLError as error:
            where = f"{cert}" if key is None else f"{cert} with {key}"
            why = error.reason or str(error)
            raise UsageError(f"no certificate and key can be read from {where}: {why}") from None
        except OSError as error:
            raise UsageError(f"cannot read the TLS files: {error}") from None
        return context


def _no_password() -> str:
    raise UsageError("the TLS key is encrypted: give one without a password")
