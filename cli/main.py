"""The `timers` command: parses the command line and runs one module of `cli/`.

A module is imported only when its command runs. `timers --help` is therefore instant, and
`timers serve` needs no boto3.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from chalicelib import __version__
from chalicelib.core.errors import OperatorError, Unavailable
from infra import stages

OUR_PACKAGES = ("chalicelib", "cli", "infra", "standalone")

ROLES = ("full", "read")
"""The values of `Role`, repeated here because importing it would load msgspec."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. A failure prints its reason to stderr and exits with status 1."""
    options = _parser().parse_args(arguments)
    try:
        import_module(options.module).run(options)
    except (OperatorError, Unavailable) as error:
        sys.exit(str(error))
    except ModuleNotFoundError as missing:
        if str(missing.name).partition(".")[0] in OUR_PACKAGES:
            raise
        sys.exit(f"{missing.name} is missing: run `pip install -r requirements-deploy.txt`.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="timers",
        description="Run, deploy and administer Timers, the webhook timer.",
        epilog="`timers COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"timers {__version__}")
    commands = _subcommands(parser)
    _add_servers(commands)
    _add_tenant_commands(commands)
    _add_deployment(commands)
    return parser


def _subcommands(parser: argparse.ArgumentParser) -> Any:
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True)


def _add(commands: Any, name: str, help: str, module: str, **more: Any) -> argparse.ArgumentParser:
    """Add a command that runs `module`; `help` is one sentence without its full stop."""
    description = f"{help[0].upper()}{help[1:]}. {more.pop('details', '')}".strip()
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=help, description=description, **more
    )
    command.set_defaults(module=module)
    return command


def _add_servers(commands: Any) -> None:
    serve = _add(
        commands,
        "serve",
        "serve Timers on this machine",
        "cli.serve",
        details="Settings come from environment variables (docs/configuration.md lists them).",
    )
    serve.add_argument("--host", help="address to listen on (HOST, else 127.0.0.1)")
    serve.add_argument("--port", help="port to listen on (PORT, else 8000)")
    demo = _add(
        commands,
        "demo",
        "serve a scratch database with a few timers",
        "cli.demo",
        details="Its data is deleted when the demo ends.",
    )
    demo.add_argument("--port", help="port to listen on (PORT, else any free one)")


def _add_tenant_commands(commands: Any) -> None:
    stage, tenant = _stage_option(), _tenant_option()
    keys = commands.add_parser(
        "keys", help="manage API keys", description="Create, list and revoke API keys."
    )
    actions = _subcommands(keys)
    add = _add(actions, "add", "create an API key and print it once", "cli.keys",
               parents=[stage, tenant])  # fmt: skip
    add.add_argument("--role", choices=ROLES, default="full", help="default: %(default)s")
    list_keys = _add(actions, "list", "list the API keys", "cli.keys", parents=[stage])
    revoke = _add(actions, "revoke", "disable an API key", "cli.keys", parents=[stage])
    revoke.add_argument("key", metavar="KEY", help="the key's id as listed, or the whole key")
    for command, action in ((add, "add"), (list_keys, "list"), (revoke, "revoke")):
        command.set_defaults(action=action)
    secrets = _add(
        commands,
        "secrets",
        "print or change a tenant's signing secrets",
        "cli.secrets",
        details="Prints the secrets in force, newest first.",
        parents=[stage, tenant],
    )
    secrets.add_argument("--add", metavar="new|whsec_…", help="add a new or an existing secret")
    secrets.add_argument("--retire", metavar="whsec_…", help="stop signing with this secret")


def _stage_option() -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--stage",
        choices=stages.STAGES,
        help="use this AWS stage instead of this machine's database (TIMERS_DB)",
    )
    return parent


def _tenant_option() -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("--tenant", help="tenant name; `default` if left out")
    return parent


def _add_deployment(commands: Any) -> None:
    deploy = _add(
        commands,
        "deploy",
        "create or update a stage on AWS",
        "cli.deploy",
        details="Without an option, the stage keeps its current setting.",
    )
    destroy = _add(commands, "destroy", "delete a stage and all of its timers", "cli.deploy")
    for command, destroys in ((deploy, False), (destroy, True)):
        command.set_defaults(destroy=destroys)
        command.add_argument("stage", metavar="STAGE", choices=stages.STAGES,
                             help=", ".join(stages.STAGES))  # fmt: skip
    deploy.add_argument("--topic", metavar="ARN", help="SNS topic for the alarms, or `none`")
    deploy.add_argument("--rate", type=int, help="requests per second (500 at first)")
    deploy.add_argument("--burst", type=int, help="requests at once (1000 at first)")
    deploy.add_argument(
        "--pollers",
        type=int,
        choices=[0, *range(2, 201)],
        metavar="0|2..200",
        help="provisioned pollers of the queue, billed all the time; 0 for none",
    )
