"""Run a module and kill it when its parent process ends: `watchdog.py MODULE ARGUMENT…`.

Standard input is a pipe, and only the parent holds its other end. The kernel closes that end when
the parent exits, even after a `kill -9`.
"""

import os
import runpy
import signal
import sys
import threading


def end_with_parent() -> None:
    """Kill this process at the end of standard input."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


threading.Thread(target=end_with_parent, daemon=True).start()
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
