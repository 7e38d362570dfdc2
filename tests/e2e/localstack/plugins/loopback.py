"""LocalStack's server at the addresses of GATEWAY_LISTEN: its own listens on all interfaces."""

from typing import Any

from localstack.runtime.server.core import RuntimeServerPlugin
from localstack.runtime.server.twisted import TwistedRuntimeServer
from localstack.utils.aws import aws_stack
from rolo.gateway import Gateway
from rolo.serving.twisted import TwistedGateway
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint


class LoopbackServer(TwistedRuntimeServer):
    """Plain HTTP only."""

    def register(self, gateway: Gateway, listen: list[Any], ssl_creds: object = None) -> None:
        """Serve the gateway at these addresses."""
        aws_stack.CACHE_S3_HOSTNAME_DNS_STATUS = False  # or it asks the DNS for s3.127.0.0.1
        for address in listen:
            endpoint = TCP4ServerEndpoint(reactor, address.port, interface=address.host)
            endpoint.listen(TwistedGateway(gateway))


class LoopbackServerPlugin(RuntimeServerPlugin):
    """What GATEWAY_SERVER=loopback selects."""

    name = "loopback"

    def load(self) -> LoopbackServer:
        return LoopbackServer()
