"""Calls to the world outside: one POST to an address that somebody typed.

Such an address must not lead inside. So the name is resolved here, once; only an address that is
global, whatever IPv4 address it may carry inside, is connected to, and that very one. Redirects
are not followed.
"""

import socket
import ssl
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings

from scheduling.errors import PermanentError

CONNECT_TIMEOUT = 5.0  # seconds, for each address that a name has
TIMEOUT = 20.0  # seconds for all of it
ANSWER_MAX = 8_192  # bytes in which the answer's first line must end

# Refusals that may pass: 408 and 425 ask for another try, 429 for patience.
PASSING = {408, 425, 429}

Address = IPv4Address | IPv6Address

# Where an IPv6 address carries an IPv4 one: how many bits stand after it.
EMBEDDING = (
    (IPv6Network("::/96"), 0),  # IPv4-compatible
    (IPv6Network("::ffff:0:0/96"), 0),  # IPv4-mapped
    (IPv6Network("::ffff:0:0:0/96"), 0),  # IPv4-translated
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64
    (IPv6Network("64:ff9b:1::/48"), 0),  # NAT64, local
    (IPv6Network("2002::/16"), 80),  # 6to4
    (IPv6Network("2001::/32"), 64),  # Teredo: its server
)
# All of IPv6 that anybody may have been given, and public IPv4 as NAT64 writes it.
UNICAST = (IPv6Network("2000::/3"), IPv6Network("64:ff9b::/96"))
TEREDO = IPv6Network("2001::/32")
ISATAP = (0x5EFE, 0x200_5EFE)


def post(url: str, body: bytes, headers: dict[str, str]) -> int:
    """POST a JSON body; return the status of an answer that says yes, from 200 to 299.

    Raises:
        PermanentError: the URL leads to no global address, or the answer is no for good.
        OSError: whatever may pass: no connection, a time-out, a 5xx answer.
    """
    parts = urlsplit(url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    until = time.monotonic() + TIMEOUT
    connection = HTTPConnection(host, parts.port or (443 if secure else 80))
    connection.sock = _connected(host, connection.port, secure)
    try:
        connection.sock.settimeout(max(until - time.monotonic(), 0.1))
        path = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
        headers = {
            "Host": parts.netloc,
            "Content-Type": "application/json",
            "Connection": "close",
            **headers,
        }
        connection.request("POST", path, body, headers)
        return _judged(url, _status(connection.sock, until))
    finally:
        connection.close()


def refusal(address: Address) -> str:
    """Return why nothing may be sent to an address, or "" if it is a global one."""
    for each in (address, *_embedded(address)):
        if not _is_global(each):
            inside = "" if each == address else f", which carries {each}"
            return f"{address}{inside} is no global address"
    return ""


def _is_global(address: Address) -> bool:
    # Python's is_global is true of multicast, and of much that nobody has been given.
    if isinstance(address, IPv6Address) and not any(address in known for known in UNICAST):
        return False
    return address.is_global and not address.is_multicast


def _embedded(address: Address) -> Iterator[IPv4Address]:
    """Yield the IPv4 addresses that an IPv6 address stands for."""
    if isinstance(address, IPv4Address):
        return
    number = int(address)
    for network, shift in EMBEDDING:
        if address in network:
            yield IPv4Address(number >> shift & 0xFFFF_FFFF)
    if address in TEREDO:
        yield IPv4Address(~number & 0xFFFF_FFFF)  # its client, written inverted
    if number >> 32 & 0xFFFF_FFFF in ISATAP:
        yield IPv4Address(number & 0xFFFF_FFFF)


def _connected(host: str, port: int, secure: bool) -> socket.socket:
    """Return a connection to the first address of the host's that allows it and answers."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    refused, failed = "", None
    for family, kind, protocol, _, where in found:
        problem = "" if settings.ALERT_ALLOW_PRIVATE else refusal(_address(where))
        if problem:
            refused = problem
            continue
        try:
            raw = socket.socket(family, kind, protocol)
            return _opened(raw, where, host, secure)
        except ssl.SSLCertVerificationError as error:
            failed = OSError(f"{host}: {error.verify_message}")
        except OSError as error:
            failed = error
    if failed is not None:
        raise failed
    raise PermanentError(f"{host}: {refused}, so nothing is sent there.")


def _opened(raw: socket.socket, where: Any, host: str, secure: bool) -> socket.socket:
    try:
        raw.settimeout(CONNECT_TIMEOUT)
        raw.connect(where)
        if secure:
            return ssl.create_default_context().wrap_socket(raw, server_hostname=host)
    except BaseException:
        raw.close()
        raise
    return raw


def _address(where: Any) -> Address:
    return ip_address(str(where[0]).partition("%")[0])


def _status(sock: socket.socket, until: float) -> int:
    """Return the status of the answer; no more of it is read than its first line."""
    answer = b""
    while b"\n" not in answer:
        left = until - time.monotonic()
        if left <= 0 or len(answer) > ANSWER_MAX:
            raise OSError("no answer in time, or one without an end")
        sock.settimeout(left)
        part = sock.recv(1024)
        if not part:
            raise OSError("the connection ended before there was an answer")
        answer += part
    words = answer.split(b"\n", 1)[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise OSError(f"the answer is no HTTP: {answer[:80]!r}")
    return int(words[1])


def _judged(url: str, status: int) -> int:
    if 200 <= status < 300:
        return status
    said = f"{urlsplit(url).hostname} answered {status}"
    if status >= 500 or status < 300 or status in PASSING:
        raise OSError(said)
    if status < 400:
        raise PermanentError(f"{said}: redirects are not followed.")
    raise PermanentError(said)
