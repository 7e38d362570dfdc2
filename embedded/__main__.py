"""`python -m embedded` still serves Timers, and names the command that replaces it."""

import sys

from standalone.bootstrap import main

if __name__ == "__main__":
    sys.stderr.write("`python -m embedded` is now `timers serve`.\n")
    main()
