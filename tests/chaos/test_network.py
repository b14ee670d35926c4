"""The network that can be cut, between a client and a server that answers each line."""

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from chaos.network import DEAF, DELAYED, MANNERS, REFUSED, SWALLOWED, Proxy
from tests.waiting import wait_for

Call = Callable[[], socket.socket]


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.heard: list[bytes] = []


class Answering(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        for line in self.rfile:
            self.server.heard.append(line)
            self.wfile.write(b"got " + line)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def way(server: Server) -> Iterator[Proxy]:
    with Proxy.before(f"tcp://127.0.0.1:{server.server_address[1]}/x") as way:
        yield way


@pytest.fixture
def call(way: Proxy) -> Iterator[Call]:
    """Return a function that makes another connection, on which a line has been answered."""
    with ExitStack() as stack:

        def called() -> socket.socket:
            client = stack.enter_context(socket.create_connection(("127.0.0.1", way.port), 5))
            client.sendall(b"hello\n")
            assert client.recv(99) == b"got hello\n"
            client.settimeout(0.2)
            return client

        yield called


def test_its_url_is_that_of_the_server_but_for_the_port(way: Proxy) -> None:
    assert way.url == f"tcp://127.0.0.1:{way.port}/x"


def test_refused_connections_end_and_so_do_new_ones(way: Proxy, call: Call) -> None:
    client = call()
    way.cut_off(REFUSED)
    assert client.recv(99) == b""
    with socket.create_connection(("127.0.0.1", way.port), 5) as another:
        assert another.recv(99) == b""


@pytest.mark.parametrize("manner", [SWALLOWED, DEAF, DELAYED])
def test_nobody_is_told_of_a_silent_cut(way: Proxy, call: Call, manner: str) -> None:
    client = call()
    way.cut_off(manner)
    client.sendall(b"lost?\n")
    with pytest.raises(TimeoutError):
        client.recv(99)


def test_what_is_swallowed_never_arrives_and_its_connection_ends(
    server: Server, way: Proxy, call: Call
) -> None:
    client = call()
    way.cut_off(SWALLOWED)
    client.sendall(b"lost\n")
    with pytest.raises(TimeoutError):
        client.recv(99)
    way.mend()
    client.settimeout(5)
    assert client.recv(99) == b""
    assert server.heard == [b"hello\n"]


def test_what_is_said_to_the_deaf_arrives(server: Server, way: Proxy, call: Call) -> None:
    client = call()
    way.cut_off(DEAF)
    client.sendall(b"one\n")
    wait_for(lambda: b"one\n" in server.heard)
    client.sendall(b"two\n")
    wait_for(lambda: b"two\n" in server.heard)
    way.mend()
    client.settimeout(5)
    assert client.recv(99) == b""


def test_what_is_delayed_arrives_though_its_client_is_gone(
    server: Server, way: Proxy, call: Call
) -> None:
    client, other = call(), call()
    way.cut_off(DELAYED)
    client.sendall(b"late\n")
    client.close()
    other.sendall(b"later\n")
    assert server.heard == [b"hello\n", b"hello\n"]
    way.mend()
    wait_for(lambda: {b"late\n", b"later\n"} <= set(server.heard))
    other.settimeout(5)
    assert other.recv(99) == b"got later\n"


@pytest.mark.parametrize("manner", MANNERS)
def test_it_is_whole_when_it_is_mended(way: Proxy, call: Call, manner: str) -> None:
    idle = call()
    way.cut_off(manner)
    way.mend()
    call()
    if manner != REFUSED:  # a connection without lost bytes goes on
        idle.sendall(b"still\n")
        idle.settimeout(5)
        assert idle.recv(99) == b"got still\n"


def test_a_server_that_is_not_there_is_a_connection_that_ends(way: Proxy, server: Server) -> None:
    server.shutdown()
    server.server_close()
    with socket.create_connection(("127.0.0.1", way.port), 5) as client:
        assert client.recv(99) == b""
