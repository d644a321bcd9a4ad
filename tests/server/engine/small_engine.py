"""A small process in vLLM's place: `small_engine.py SOCKET MODE`.

It answers /health on the socket, /wait never, and /stream not to its end. MODE: `serve`; `fail`
(says why and exits 3); `deaf` (never listens); `slow` (listens after a second); `stubborn` (ignores
SIGTERM); `sick` (healthy at first, then answers 500); `hung` (healthy, but after half a second
there is no answer of what would be the core), `busy` (the same, but it computes meanwhile), `bare`
(cannot be asked for more than its health), `cored` (healthy, and its core is dead).
Every mode but `fail` starts a child that ignores SIGTERM, as vLLM's engine core might.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingMixIn, UnixStreamServer

SOCKET, MODE = sys.argv[1], sys.argv[2]
BEGAN = time.monotonic()


class Health(BaseHTTPRequestHandler):
    def address_string(self) -> str:
        return "unix"

    def do_GET(self) -> None:
        if self.path == "/wait":
            time.sleep(600)
        if self.path == "/stream":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"a part")
            time.sleep(600)
        if self.path == "/adapterctl/alive" and time.monotonic() - BEGAN > 0.5:
            if MODE in ("hung", "busy"):
                time.sleep(600)
            if MODE in ("bare", "cored"):
                self.send_error(404 if MODE == "bare" else 503)
                return
        sick = MODE == "sick" and time.monotonic() - BEGAN > 1
        self.send_response(500 if sick else 200)
        self.send_header("content-length", "0")
        self.end_headers()


class Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


def main() -> None:
    if MODE == "fail":
        sys.stderr.write("loading the weights\nOSError: no space for the weights\nit is over\n")
        sys.exit(3)
    if MODE == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", child])
    if MODE == "deaf":
        time.sleep(600)
    if MODE == "busy":
        # Several: among other work on the machine they get something each.
        for _ in range(4):
            subprocess.Popen([sys.executable, "-c", "while True: pass"])
    if MODE == "slow":
        time.sleep(1)
    with Server(SOCKET, Health) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
