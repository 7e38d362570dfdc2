"""`python -m standalone` serves Timers on this machine, as `timers serve` does."""

from standalone.bootstrap import main

if __name__ == "__main__":
    main()
