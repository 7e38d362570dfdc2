"""A LocalStack server on GATEWAY_LISTEN only; the default listens on all interfaces."""

from typing import Any

from localstack.runtime.server.core import RuntimeServerPlugin
from localstack.runtime.server.twisted import TwistedRuntimeServer
from localstack.utils.aws import aws_stack
from rolo.gateway import Gateway
from rolo.serving.twisted import TwistedGateway
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint


class LoopbackServer(TwistedRuntimeServer):
    """Serves plain HTTP, without TLS."""

    def register(self, gateway: Gateway, listen: list[Any], ssl_creds: object = None) -> None:
        """Serve the gateway at these addresses."""
        aws_stack.CACHE_S3_HOSTNAME_DNS_STATUS = False  # otherwise it looks up s3.127.0.0.1
        for address in listen:
            endpoint = TCP4ServerEndpoint(reactor, address.port, interface=address.host)
            endpoint.listen(TwistedGateway(gateway))


class LoopbackServerPlugin(RuntimeServerPlugin):
    """Selected by GATEWAY_SERVER=loopback."""

    name = "loopback"

    def load(self) -> LoopbackServer:
        return LoopbackServer()
