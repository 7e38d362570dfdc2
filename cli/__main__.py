"""`python -m cli` is the `timers` command, run from the checkout."""

from cli.main import main

if __name__ == "__main__":
    main()
