"""Run a module until whoever started it is gone: `watchdog.py MODULE ARGUMENT…`.

Standard input is a pipe of which only the starter holds the other end. However the starter ends,
the kernel closes it, so that nothing stays behind, not even after a `kill -9`.
"""

import os
import runpy
import signal
import sys
import threading


def end_with_the_starter() -> None:
    """Kill this process once standard input has ended."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


threading.Thread(target=end_with_the_starter, daemon=True).start()
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
