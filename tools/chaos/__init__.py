"""Fault injection: break the service's surroundings and check that it keeps its promises.

`ledger` defines the promises and finds broken ones. `standalone` injects faults into the disk, the
clock and the network of the standalone server, `aws` into the calls and events of the deployed
service. `make chaos` runs everything.
"""
