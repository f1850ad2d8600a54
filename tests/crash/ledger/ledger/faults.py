"""Ways in which an app goes wrong. Each prints `dying <Unix seconds>` before it does."""

import ctypes
import os
import signal
import time


def wrong(how: str) -> None:
    """End this process, or raise."""
    print(f"dying {time.time()}", flush=True)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "exit":
        os._exit(3)
    elif how == "memory":
        hoard = []
        while True:
            hoard.append(bytearray(os.urandom(1 << 20) * 16))
    raise ValueError("the app is wrong")
