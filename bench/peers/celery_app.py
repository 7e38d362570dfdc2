"""Timers built with Celery, as its users would: a WSGI app creates them, and a task fires them."""

import json
import os
from collections.abc import Callable
from datetime import datetime
from typing import Any

import requests
from celery import Celery
from requests.adapters import HTTPAdapter

celery = Celery("timers", broker=os.environ["REDIS_URL"])
celery.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)
session = requests.Session()
session.mount("http://", HTTPAdapter(pool_maxsize=64))


@celery.task(bind=True, autoretry_for=(requests.RequestException,), retry_backoff=10, max_retries=8)
def fire(self: Any, url: str) -> None:
    """Post the webhook."""
    session.post(url, headers={"webhook-id": self.request.id}, timeout=30).raise_for_status()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Create a timer from `{"url": …, "fire_at": …}`."""
    answer = {}
    if environ["REQUEST_METHOD"] == "POST":
        spec = json.load(environ["wsgi.input"])
        fire_at = datetime.fromisoformat(spec["fire_at"])
        answer = {"id": fire.apply_async((spec["url"],), eta=fire_at).id}
    content = json.dumps(answer).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
    start_response("201 Created" if answer else "200 OK", headers)
    return [content]
