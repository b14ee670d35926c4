"""Fixtures: a receiver on loopback, and a key for secrets."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import pytest
from cryptography.fernet import Fernet
from pytest_django import Settings

from triggers.models import Secret, Trigger


class Received(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print no traceback: clients hang up here on purpose."""


class Receiver:
    """A server that keeps its requests, and answers as a test says."""

    def __init__(self) -> None:
        self.status, self.body = 200, b"thanks"
        self.headers: dict[str, str] = {}
        self.received: list[Received] = []
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                served.received.append(Received(self.command, self.path, dict(self.headers), body))
                self.send_response(served.status)
                for name, value in served.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(served.body)))
                self.end_headers()
                self.wfile.write(served.body)

            do_GET = do_PUT = do_PATCH = do_DELETE = do_POST = _serve

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (its name there)
                pass

        self.server = QuietServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver(settings: Settings) -> Iterator[Receiver]:
    settings.OUTGOING_ALLOW = ["127.0.0.0/8"]
    made = Receiver()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def secrets_key(settings: Settings) -> str:
    key = Fernet.generate_key().decode()
    settings.SECRETS_KEYS = [key]
    return key


MakeTrigger = Callable[..., Trigger]


@pytest.fixture
def make_trigger(db: None) -> MakeTrigger:
    """Make a checked trigger, with its secrets by name."""

    def make(
        url: str, *, name: str = "door", secrets: dict[str, str] | None = None, **values: Any
    ) -> Trigger:
        trigger = Trigger(name=name, url=url, **values)
        trigger.full_clean()
        trigger.save()
        for secret_name, value in (secrets or {}).items():
            add_secret(trigger, secret_name, value)
        return trigger

    return make


def add_secret(trigger: Trigger, name: str, value: str, **values: Any) -> Secret:
    secret = Secret(trigger=trigger, name=name, **values)
    secret.seal(value)
    secret.save()
    return secret
