"""Timers: the core and its AWS adapters; the part that goes into the Lambda bundle."""

__version__ = "0.2.0"
