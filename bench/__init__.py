"""Benchmarks: the time and memory that Timers takes, compared with its alternatives."""
