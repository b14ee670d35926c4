"""Guarded HTTP, against real servers that behave badly in every way."""

import gzip
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pytest_django import Settings

from scheduling.jobs import PermanentError
from scheduling.outgoing.http import Limits, request


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print no traceback: clients hang up here on purpose."""


class Server:
    """An HTTP/1.1 server that keeps connections, and answers as a test says."""

    def __init__(self) -> None:
        self.status, self.body = 200, b"hello"
        self.headers: dict[str, str] = {}
        self.write: Callable[[Any], None] | None = None
        self.calls: list[tuple[str, str, dict[str, str], bytes]] = []
        self.connections = set[int]()
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def _serve(self) -> None:
                sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                served.calls.append((self.command, self.path, dict(self.headers), sent))
                served.connections.add(self.client_address[1])
                if served.write is not None:
                    served.write(self.wfile)
                    self.close_connection = True
                    return
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
        self.url = f"http://127.0.0.1:{self.server.server_port}/things"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server(settings: Settings) -> Iterator[Server]:
    settings.ALERT_ALLOW_PRIVATE = True
    made = Server()
    yield made
    made.close()


def dripping(piece: bytes, begin: bytes = b"") -> Callable[[Any], None]:
    """Return a body of a server that sends `begin`, and then a piece every 50 ms for 20 s."""

    def drip(out: Any) -> None:
        try:
            out.write(begin)
            for _ in range(400):
                out.write(piece)
                time.sleep(0.05)
        except OSError:
            pass

    return drip


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "POST"])
def test_it_sends_any_method_and_returns_the_answer(server: Server, method: str) -> None:
    server.status, server.headers = 404, {"X-Why": "gone"}
    answer = request(method, f"{server.url}?a=b%20c", headers={"X-Mine": "1"}, body=b"{}")
    ((sent, path, headers, body),) = server.calls
    assert (sent, path, body, headers["X-Mine"]) == (method, "/things?a=b%20c", b"{}", "1")
    assert (answer.status, answer.body, answer.is_cut) == (404, b"hello", False)
    assert answer.headers["x-why"] == "gone"
    assert answer.address == server.url.split("/")[2]
    assert 0 < answer.seconds < 10


def test_it_keeps_a_connection_for_the_next_request(server: Server) -> None:
    for _ in range(5):
        request("GET", server.url)
    assert len(server.connections) == 1


def test_a_forked_child_takes_a_connection_of_its_own(server: Server) -> None:
    request("GET", server.url)
    if (child := os.fork()) == 0:
        request("GET", server.url)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    request("GET", server.url)
    assert len(server.connections) == 2


def test_a_long_answer_is_cut_and_spoils_no_later_one(server: Server) -> None:
    server.body = b"x" * 5_000
    answer = request("GET", server.url, limits=Limits(receives=4_096))
    assert (len(answer.body), answer.is_cut) == (4_096, True)
    server.body = b"short"
    assert request("GET", server.url).body == b"short"


def test_a_bomb_of_gzip_is_cut_at_the_limit(server: Server) -> None:
    server.headers, server.body = {"Content-Encoding": "gzip"}, gzip.compress(bytes(50_000_000))
    begun = time.monotonic()
    answer = request("GET", server.url)
    assert (len(answer.body), answer.is_cut) == (1_048_576, True)
    assert time.monotonic() - begun < 5


def test_a_body_that_is_too_long_to_be_sent_is_refused(server: Server) -> None:
    with pytest.raises(PermanentError, match="11 bytes; at most 10"):
        request("POST", server.url, body=b"x" * 11, limits=Limits(sends=10))
    assert server.calls == []


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"


@pytest.mark.parametrize(
    "write",
    [
        dripping(b"H"),
        dripping(b"X-A: b\r\n", b"HTTP/1.1 200 OK\r\n"),
        dripping(b"x", HEAD),
        dripping(b"1\r\nx\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        lambda out: time.sleep(3),
    ],
    ids=["status line", "headers", "body", "chunks", "silence"],
)
def test_one_deadline_bounds_a_server_that_drips(
    server: Server, write: Callable[[Any], None]
) -> None:
    server.write = write
    begun = time.monotonic()
    with pytest.raises(OSError, match=r"in time|timed out"):
        request("GET", server.url, limits=Limits(whole=0.4))
    assert time.monotonic() - begun < 3


def test_a_server_that_reads_nothing_is_left_at_the_deadline(settings: Settings) -> None:
    settings.ALERT_ALLOW_PRIVATE = True
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/"
        with pytest.raises(OSError, match=r"in time|timed out"):
            request("POST", url, body=bytes(50_000_000),
                    limits=Limits(whole=0.4, sends=100_000_000))  # fmt: skip


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ncut", b"SSH-2.0-x\r\n"]
)
def test_an_answer_that_is_cut_off_may_pass(server: Server, answer: bytes) -> None:
    server.write = lambda out: out.write(answer)
    with pytest.raises(OSError, match=r"HTTP|response|reset"):
        request("GET", server.url)


def test_no_proxy_of_the_environment_is_used(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert request("GET", server.url).status == 200


@pytest.mark.parametrize("header", ["a\r\nX-More: 1", "a\nb"])
def test_a_header_cannot_begin_another_one(server: Server, header: str) -> None:
    with pytest.raises((ValueError, OSError)):
        request("GET", server.url, headers={"X-Mine": header})
    assert server.calls == []
