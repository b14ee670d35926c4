"""Guarded HTTP: requests to URLs that users typed cannot reach internal networks.

A name is resolved here, once for each connection. Each address is checked, and the connection goes
to the checked address. Redirects are not followed, proxies of the environment are not used, and
one deadline bounds the whole exchange, even if a server sends its answer a byte at a time.

urllib3 speaks HTTP and keeps connections; this module decides which addresses they may have.
"""

import os
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, NamedTuple

from django.conf import settings
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from scheduling.errors import PermanentError
from scheduling.outgoing.networks import refusal

PART = 65_536  # bytes read at once
POOLS = 20  # hosts whose connections are kept
HEADERS = {"User-Agent": "truebeat", "Accept-Encoding": "gzip"}


class Limits(NamedTuple):
    """The bounds of one exchange: seconds for a connection and for the whole, bytes each way."""

    connect: float = 3.0  # for each address that a name has
    whole: float = 30.0
    sends: int = 1_048_576
    receives: int = 1_048_576  # after decompression


class Answer(NamedTuple):
    """The answer of a server. `is_cut`: the body is longer than the limit, and ends there."""

    status: int
    headers: Mapping[str, str]  # names in any case
    body: bytes
    is_cut: bool
    address: str  # that the request was sent to
    seconds: float


DEFAULT_LIMITS = Limits()


def request(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Answer:
    """Send one request and return the answer, with any status.

    Raises:
        PermanentError: the URL leads to no global address, or the body is too long to be sent.
        OSError: the exchange failed in a way that may pass: no connection, no answer in time, an
            answer that is not HTTP.
    """
    if body is not None and len(body) > limits.sends:
        raise PermanentError(
            f"the body has {len(body):,} bytes; at most {limits.sends:,} can be sent."
        )
    begun = time.monotonic()
    exchange = _Exchange(begun + limits.whole, limits.connect)
    try:
        with _entered(exchange):
            response = _pools(os.getpid()).urlopen(
                method,
                url,
                body=body,
                headers={**HEADERS, **(headers or {})},
                redirect=False,
                retries=False,
                preload_content=False,
                timeout=limits.whole,  # of each read; the socket knows the deadline of the whole
            )
            content, is_cut = _body(response, limits.receives)
    except HTTPError as error:
        raise _plain(error) from error
    seconds = time.monotonic() - begun
    return Answer(response.status, response.headers, content, is_cut, exchange.address, seconds)


def _body(response: Any, most: int) -> tuple[bytes, bool]:
    """Return the body, up to `most` bytes, and whether there is more of it."""
    parts, size = list[bytes](), 0
    try:
        # `read1` returns the bytes that have arrived; `read` would wait for more of them.
        while size <= most and (part := response.read1(min(PART, most + 1 - size))):
            parts.append(part)
            size += len(part)
    except BaseException:
        response.close()
        raise
    if size > most:
        response.close()  # the next answer would begin with the rest of this one
    else:
        response.release_conn()
    return b"".join(parts)[:most], size > most


def _plain(error: BaseException) -> OSError:
    """Return the OSError that urllib3 has wrapped, or a new one with its message."""
    for inner in (error.__cause__, *error.args):
        if isinstance(inner, ssl.SSLCertVerificationError):
            return OSError(f"the server's certificate is not trusted: {inner.verify_message}")
        if isinstance(inner, OSError):
            return inner
    return OSError(f"the server did not answer with HTTP: {error}")


# --- Deadlines -----------------------------------------------------------------------------------


class _Exchange:
    """One request under way, as its connection sees it."""

    def __init__(self, until: float, connect: float) -> None:
        self.until = until  # monotonic
        self.connect = connect
        self.address = ""

    def left(self) -> float:
        """Return the seconds that are left.

        Raises:
            TimeoutError: no time is left.
        """
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the server did not answer in time")
        return left


_current: ContextVar[_Exchange] = ContextVar("exchange")


@contextmanager
def _entered(exchange: _Exchange) -> Iterator[None]:
    token = _current.set(exchange)
    try:
        yield
    finally:
        _current.reset(token)


class _Timed:
    """A socket that waits until its exchange's deadline, over all of its calls together."""

    def recv_into(self: Any, *args: Any, **options: Any) -> Any:
        self.settimeout(_current.get().left())
        return super().recv_into(*args, **options)  # type: ignore[misc]

    def sendall(self: Any, *args: Any, **options: Any) -> Any:
        self.settimeout(_current.get().left())
        return super().sendall(*args, **options)  # type: ignore[misc]


class _Socket(_Timed, socket.socket):
    pass


class _TLSSocket(_Timed, ssl.SSLSocket):
    pass


# --- Connections ---------------------------------------------------------------------------------


class _Guarded:
    """A connection to the first address of its host that may be connected to and answers."""

    sock: Any

    def _new_conn(self: Any) -> socket.socket:
        exchange = _current.get()
        refused, failed = "", None
        for family, kind, protocol, _, where in _resolved(self._dns_host, self.port, exchange):
            problem = "" if settings.ALERT_ALLOW_PRIVATE else refusal(_address(where))
            if problem:
                refused = problem
                continue
            sock = _Socket(family, kind, protocol)
            try:
                sock.settimeout(min(exchange.connect, exchange.left()))
                sock.connect(where)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(exchange.left())  # for the TLS handshake
            except OSError as error:
                sock.close()
                failed = error
                continue
            return sock
        if failed is not None:
            raise failed
        raise PermanentError(f"{self.host}: {refused}, so nothing is sent there.")

    def request(self, *args: Any, **options: Any) -> None:
        super().request(*args, **options)  # type: ignore[misc]
        with suppress(OSError):
            address, port = self.sock.getpeername()[:2]
            _current.get().address = (
                f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            )


class _Connection(_Guarded, HTTPConnection):
    pass


class _TLSConnection(_Guarded, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


@lru_cache(maxsize=1)
def _pools(pid: int) -> PoolManager:
    """Return the kept connections of this process: a forked child must not share its parent's."""
    context = ssl.create_default_context()
    context.sslsocket_class = _TLSSocket
    pools = PoolManager(num_pools=POOLS, maxsize=4, ssl_context=context)
    pools.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
    return pools


def _resolved(host: str, port: int, exchange: _Exchange) -> Any:
    """Return the addresses of a host; the resolver has no time-out, so a thread waits for it."""
    with suppress(ValueError):
        ip_address(host)
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def resolve() -> None:
        try:
            found.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.put(error)

    threading.Thread(target=resolve, name="resolver", daemon=True).start()
    try:
        addresses = found.get(timeout=exchange.left())
    except queue.Empty:
        raise TimeoutError(f"the name {host} was not resolved in time") from None
    if isinstance(addresses, UnicodeError):
        raise PermanentError(f"{host!r} is not a host name: {addresses}.")
    if isinstance(addresses, OSError):
        raise addresses
    return addresses


def _address(where: Any) -> Any:
    return ip_address(str(where[0]).partition("%")[0])
