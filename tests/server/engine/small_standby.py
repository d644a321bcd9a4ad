"""A small process in the launcher's place: `-m tests.server.engine.small_standby PID SOCKET MODE`.

It becomes small_engine.py, at once or, with `--standby`, when it is ordered to. What it does until
then is in the environment variable SMALL_STANDBY: `good`; `slow` (imports for a second); `dies`
(while it imports); `deaf` (takes no order); `odd` (answers nonsense).
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from server.engine.launch import STANDBY, die_with_parent
from server.vllm_plugin.warm import wait_for_order


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    arguments = sys.argv[2:]
    if arguments == [STANDBY]:
        arguments = _wait(os.environ.get("SMALL_STANDBY", "good"))
    sys.stdout.write(f"engine {os.environ.get('ADAPTERCTL_ENGINE_ID')} {arguments}\n")
    sys.stdout.flush()
    engine = str(Path(__file__).with_name("small_engine.py"))
    os.execv(sys.executable, [sys.executable, engine, *arguments])


def _wait(mode: str) -> list[str]:
    if mode == "dies":
        sys.exit("this import fails")
    if mode == "slow":
        time.sleep(1)
    if mode in {"deaf", "odd"}:
        os.write(0, b'{"ready": 1}\n')
        os.read(0, 1 << 20)
        if mode == "odd":
            os.write(0, b"what?\n")
        time.sleep(600)
    arguments, environment = wait_for_order(dict(os.environ))
    os.environ.update(environment)
    return arguments


if __name__ == "__main__":
    main()
