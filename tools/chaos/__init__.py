"""Faults of every kind against the service, and what it has promised held against what it did.

`ledger` says what a promise is and finds those that were broken. `embedded` breaks what the
standalone server stands on, `aws` what the deployed service does. `make chaos` runs all of it.
"""
