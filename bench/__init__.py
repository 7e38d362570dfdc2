"""Benchmarks: the speed and memory of Timers, compared with its alternatives."""
