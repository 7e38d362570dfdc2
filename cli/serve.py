"""`timers serve`: the standalone server."""

import argparse
import os

from standalone import bootstrap


def run(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C. The options override the environment variables."""
    for name, value in (("HOST", options.host), ("PORT", options.port)):
        if value is not None:
            os.environ[name] = value
    bootstrap.main()
