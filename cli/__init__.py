"""The `timers` command, for operators."""
