"""Timers: the core and its AWS adapters; the part that goes into the Lambda bundle."""
