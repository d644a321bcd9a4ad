"""Whether the server in this container lives: exit 0 if /healthz answers with 200, else 1.

The port and whether it speaks TLS come from the environment, as the server's own settings do; who
sets them in a file tells them to the container as well.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys

TIMEOUT_SECONDS = 4


def main() -> int:
    """The exit code; one line on stderr says what is wrong."""
    port = int(os.environ.get("ADAPTERCTL_PORT", "8000"))
    connection: http.client.HTTPConnection
    if os.environ.get("ADAPTERCTL_TLS_CERT"):
        # It asks itself over loopback: who answers is not in question, and no name would match.
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=TIMEOUT_SECONDS, context=context
        )
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        sys.stderr.write(f"/healthz does not answer: {error}\n")
        return 1
    finally:
        connection.close()
    if status != 200:
        sys.stderr.write(f"/healthz answers {status}\n")
    return 0 if status == 200 else 1


if __name__ == "__main__":
    raise SystemExit(main())
