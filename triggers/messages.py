"""Sends one message through a broker, by kombu: Redis and RabbitMQ."""

import socket
from ipaddress import ip_address
from urllib.parse import urlsplit, urlunsplit

from kombu import Connection

from scheduling.jobs import PermanentError
from scheduling.outgoing.networks import refusal
from triggers.requests import Request

SECONDS = 3  # to connect


def send(request: Request) -> str:
    """Publish the message; return the address that it was sent to.

    Raises:
        PermanentError: the host leads to no address that may be connected to.
        OSError: the broker cannot be reached, or did not take the message.
    """
    url, address = _at_judged_address(request.url)
    options = {"socket_timeout": 10, "socket_connect_timeout": SECONDS}
    with Connection(
        url, connect_timeout=SECONDS,
        transport_options=options if url.startswith("redis") else {"confirm_publish": True},
    ) as connection:  # fmt: skip
        try:
            connection.Producer().publish(
                request.body or b"", exchange=request.exchange, routing_key=request.routing_key,
                content_type="application/json", content_encoding="utf-8", retry=False,
                headers=request.headers, **request.properties,
            )  # fmt: skip
        except (*connection.connection_errors, *connection.channel_errors) as error:
            raise OSError(f"the broker did not take the message: {error}") from error
        except (TypeError, ValueError) as error:
            raise PermanentError(f"the message cannot be written: {error}") from error
    return address


def _at_judged_address(url: str) -> tuple[str, str]:
    """Return the URL with its host as an address that may be connected to, and that address."""
    parts = urlsplit(url)
    port = parts.port or (6379 if parts.scheme == "redis" else 5672)
    problem = ""
    for *_, where in socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM):
        address = str(where[0])
        problem = refusal(ip_address(address.partition("%")[0]))
        if not problem:
            host = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            login = parts.netloc.rpartition("@")[0]
            netloc = f"{login}@{host}" if login else host
            return urlunsplit(parts._replace(netloc=netloc)), host
    raise PermanentError(f"{parts.hostname}: {problem}, so nothing is sent there.")
