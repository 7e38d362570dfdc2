"""`timers deploy` and `timers destroy`: a stage in an AWS account or on LocalStack."""

import argparse

from infra.deploy import Deployment
from infra.stages import aws_session


def run(options: argparse.Namespace) -> None:
    """Deploy or destroy the stage; AWS errors become a OperatorError."""
    with aws_session(options.stage) as session:
        deployment = Deployment(options.stage, session)
        if options.destroy:
            deployment.destroy()
            return
        deployment.deploy(
            topic=options.topic,
            rate=options.rate,
            burst=options.burst,
            pollers=options.pollers,
        )
