"""The `timers` command, for the people who run a Timers server."""
