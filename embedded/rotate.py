"""Prints, adds and retires the secrets of the embedded engine: `python -m embedded.rotate`.

It has a connection of its own, so that the server may run meanwhile; that reads the secrets afresh
for each webhook.
"""

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from chalicelib import keys, signing
from chalicelib.errors import Unavailable
from chalicelib.signing import SecretRefused
from chalicelib.timers import DEFAULT_TENANT
from embedded.sqlite import DATABASE, Unusable, secrets_in


def main(arguments: Sequence[str]) -> None:
    """Print the secrets, newest first; what goes wrong is one sentence and status 1."""
    given = _parser().parse_args(arguments)
    path = Path(os.environ.get("TIMERS_DB", DATABASE))
    entropy = secrets.token_bytes(signing.ENTROPY)
    try:
        with secrets_in(path) as kept:
            found = signing.change(kept, given.tenant, entropy, add=given.add, retire=given.retire)
    except (SecretRefused, Unavailable, Unusable) as error:
        sys.exit(str(error))
    sys.stdout.write("\n".join(found) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m embedded.rotate", description=__doc__)
    parser.add_argument("--tenant", type=_tenant, default=DEFAULT_TENANT)
    parser.add_argument("--add", metavar="new|whsec_…", help="add this one first")
    parser.add_argument("--retire", metavar="whsec_…", help="then retire this one")
    return parser


def _tenant(name: str) -> str:
    if not keys.TENANT.fullmatch(name):
        raise argparse.ArgumentTypeError("up to 63 of a-z, 0-9, - and _, not - or _ first")
    return name


if __name__ == "__main__":
    main(sys.argv[1:])
