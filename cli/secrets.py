"""`timers secrets`: the secrets that a tenant's webhooks are signed with."""

import argparse
from secrets import token_bytes

from chalicelib.core import signing
from chalicelib.service import credentials
from cli.credentials import open_credentials, tenant_name


def run(options: argparse.Namespace) -> None:
    """Add and retire secrets as asked, then print those in force, newest first."""
    entropy = token_bytes(signing.SECRET_ENTROPY)
    tenant = tenant_name(options.tenant)
    with open_credentials(options.stage) as (_, secrets):
        in_force = credentials.change_secrets(
            secrets, tenant, entropy, add=options.add, retire=options.retire
        )
    print("\n".join(in_force))
