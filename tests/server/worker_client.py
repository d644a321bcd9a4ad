"""In place of `python -m server.cli.worker`: hands what it was started with to a fork of
worker_forks.py, and ends as that does. `python -I -S` on this file takes no time."""

import json
import os
import signal
import socket
import sys

ENDED = 1


def main(path: str) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as end:
        end.connect(path)
        # First the descriptors, with a byte that carries them.
        socket.send_fds(end, [b" "], [0, 1, 2])
        order = {"environment": dict(os.environ), "folder": os.path.realpath(".")}
        end.sendall(json.dumps(order).encode())
        end.shutdown(socket.SHUT_WR)
        # Only the fork has the pipes: their end is its end.
        for number in range(3):
            os.close(number)
        code = end.recv(ENDED)
    if not code:
        os.kill(os.getpid(), signal.SIGKILL)
    return code[0]


if __name__ == "__main__":
    # Nothing of the interpreter's is left to be closed.
    os._exit(main(sys.argv[1]))
