"""A moto account behind TLS on loopback, which gives the measured functions work to do.

A measured function runs in its own process and signs, encrypts and parses as on AWS. Its CPU time
does not include moto's.
"""

import json
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from secrets import token_bytes
from threading import Lock, Thread
from typing import Any

import certifi
import msgspec
import trustme
from botocore.awsrequest import AWSPreparedRequest
from moto.core.botocore_stubber import BotocoreStubber

from chalicelib import runtime
from chalicelib.aws.credential_store import DynamoApiKeys, DynamoSecrets
from chalicelib.core import api_keys, signing
from chalicelib.core.api_keys import Role
from chalicelib.core.timer import DEFAULT_TENANT, Webhook
from chalicelib.service import credentials
from tests.support.aws import ACCOUNT, REGION, STAGE, TENANTS, Account, account
from tests.support.cloud import Cloud
from tests.support.fakes import created
from tests.support.processes import Receiver

ARN = f"arn:aws:execute-api:{REGION}:{ACCOUNT}:abc/api/POST/timers"


class MeasuredAccount:
    """An account with prepared work; each method returns an event for one function."""

    def __init__(self, aws: Account, receiver: Receiver, settings: dict[str, str]) -> None:
        self.settings = settings
        """The environment in which a function finds the account."""
        self.calls: list[str] = []
        """The AWS services that were called, in order."""
        self.arrivals = receiver.arrivals
        """The webhooks that were sent, in order."""
        self._aws = aws
        self._url = receiver.url
        self._cloud = Cloud(aws)
        self._cloud.clock.now = runtime.now()
        now, chance = self._cloud.clock.now, partial(token_bytes, api_keys.KEY_ENTROPY)
        self._key, key = api_keys.mint(DEFAULT_TENANT, Role.FULL, now, chance())
        DynamoApiKeys(aws.dynamodb, TENANTS).add(key)
        secrets = DynamoSecrets(aws.dynamodb, TENANTS)
        credentials.ensure_secret(secrets, DEFAULT_TENANT, token_bytes(signing.SECRET_ENTROPY))

    def create(self) -> Any:
        """POST /timers, due in ten minutes."""
        body = {"seconds": 600, "url": self._url, "metadata": {"order": "4711"}}
        return {
            "resource": "/timers",
            "path": "/timers",
            "httpMethod": "POST",
            "headers": {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"},
            "multiValueQueryStringParameters": None,
            "pathParameters": None,
            "stageVariables": None,
            "requestContext": {
                "resourcePath": "/timers",
                "path": "/api/timers",
                "httpMethod": "POST",
                "authorizer": {"tenant": DEFAULT_TENANT, "role": Role.FULL.value},
            },
            "body": json.dumps(body),
            "isBase64Encoded": False,
        }

    def authorize(self) -> Any:
        """An authorizer request with a valid key."""
        return {"type": "TOKEN", "methodArn": ARN, "authorizationToken": f"Bearer {self._key}"}

    def fire(self) -> Any:
        """The schedule of a distant timer, five minutes before its deadline."""
        clock = self._cloud.clock
        kept, clock.now = clock.now, clock.now - timedelta(minutes=15)
        timer = created(self._cloud.service, Webhook(url=self._url), 20 * 60)
        clock.now = kept
        return msgspec.to_builtins(timer.wakeup())

    def deliver(self) -> Any:
        """A message for a due timer, whose receiver responds at once."""
        created(self._cloud.service, Webhook(url=self._url))
        queue = self._aws.queue_url()
        (message,) = self._aws.sqs.receive_message(QueueUrl=queue)["Messages"]
        # Otherwise it would be received again after half a minute.
        self._aws.sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
        return {
            "Records": [
                {
                    "messageId": message["MessageId"],
                    "receiptHandle": message["ReceiptHandle"],
                    "body": message["Body"],
                    "eventSource": "aws:sqs",
                }
            ]
        }

    def sweep(self) -> Any:
        """The event of the sweep, with no overdue timers."""
        return {
            "version": "0",
            "id": "x",
            "account": ACCOUNT,
            "region": REGION,
            "source": "aws.events",
            "detail-type": "Scheduled Event",
            "time": "2026-01-31T12:00:00Z",
            "resources": [],
            "detail": {},
        }


@contextmanager
def measured_account(folder: Path) -> Iterator[MeasuredAccount]:
    """Yield an account; the certificates of its server are written to the folder."""
    authority = trustme.CA()
    bundle = folder / "authorities.pem"
    # As many as botocore's own: reading them is part of a first call.
    bundle.write_bytes(Path(certifi.where()).read_bytes() + authority.cert_pem.bytes())
    server = _Server(authority)
    with account() as aws, Receiver() as receiver, server.running():
        settings = {
            "AWS_ENDPOINT_URL": f"https://127.0.0.1:{server.server_port}",
            "AWS_CA_BUNDLE": str(bundle),
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": REGION,
            "ALLOWED_TARGETS": "127.0.0.1",
            "STAGE": STAGE,
        }
        made = MeasuredAccount(aws, receiver, settings)
        server.calls = made.calls
        yield made


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 100  # a sweep comes with 32 at once

    def __init__(self, authority: trustme.CA) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls: list[str] = []
        self.moto = BotocoreStubber()
        self.one_at_a_time = Lock()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(tls)
        self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    @contextmanager
    def running(self) -> Iterator[None]:
        Thread(target=self.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            self.shutdown()
            self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: _Server

    def do_POST(self) -> None:
        """Respond to an AWS client's request through moto."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        scope = re.search(r"/(\w+)/aws4_request", self.headers["Authorization"])
        service = scope[1] if scope else ""
        url = f"https://{service}.{REGION}.amazonaws.com{self.path}"
        headers: Any = self.headers
        request = AWSPreparedRequest(self.command, url, headers, body, stream_output=False)
        with self.server.one_at_a_time:
            self.server.calls.append(service)
            answered = self.server.moto.process_request(request)
        status, sent_headers, answer = answered or (404, {}, "")
        content = answer.encode() if isinstance(answer, str) else answer
        self.send_response(status)
        for name, value in sent_headers.items():
            if name.lower() not in ("content-length", "date", "server"):
                self.send_header(name, str(value))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_PUT = do_GET = do_DELETE = do_POST  # noqa: N815  # http.server's names

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""
