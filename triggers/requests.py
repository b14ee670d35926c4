"""Fills a definition in and signs it: the exact request that is sent."""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit, urlunsplit

from triggers import placeholders
from triggers.definitions import CONTROL, Definition, Kind
from triggers.placeholders import PlaceholderError

MASK = "********"
PREFIX = "whsec_"


class Request(NamedTuple):
    """A request or a message, ready to be sent."""

    definition: Definition
    url: str
    headers: dict[str, str]
    body: bytes | None
    exchange: str = ""
    routing_key: str = ""
    properties: Mapping[str, Any] = {}


class Facts(NamedTuple):
    """The values that a request has of its run."""

    values: Mapping[str, Any]  # by the name of the placeholder, with args.NAME
    run_id: str
    schedule: str
    due_at: str
    attempt: int
    is_test: bool = False


def build(
    definition: Definition,
    facts: Facts,
    secrets: Mapping[str, str],
    signing: Sequence[str],
    now: datetime,
) -> Request:
    """Return the request.

    Raises:
        PlaceholderError: a value is missing, or does not fit its place.
    """
    values = {**facts.values, **{f"secrets.{name}": value for name, value in secrets.items()}}
    body = placeholders.fill(definition.body, values)
    content = None if body is None else json.dumps(body, ensure_ascii=False).encode()
    headers = {
        name: _header(name, placeholders.fill_text(value, values))
        for name, value in definition.headers.items()
    }
    if content is not None and "content-type" not in map(str.lower, headers):
        headers["Content-Type"] = "application/json"
    headers |= _own_headers(facts)
    headers |= _signed(facts.run_id, now, content or b"", signing)
    return Request(
        definition,
        _url(definition, values),
        headers,
        content,
        placeholders.fill_text(definition.exchange, values),
        placeholders.fill_text(definition.routing_key, values),
        placeholders.fill(definition.properties, values),
    )


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """Return a signature after the Standard Webhooks specification, version 1.

    Raises:
        PlaceholderError: the secret is not `whsec_` and base64.
    """
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        raise PlaceholderError("the signing secret is not whsec_ and base64") from None
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def _own_headers(facts: Facts) -> dict[str, str]:
    headers = {"Truebeat-Due-At": facts.due_at, "Truebeat-Attempt": str(facts.attempt)}
    if facts.schedule:
        # Headers are ASCII; a schedule's name may be any text.
        headers["Truebeat-Schedule"] = quote(facts.schedule, safe=" /:,.()@")
    if facts.is_test:
        headers["Truebeat-Test"] = "1"
    return headers


def _signed(message_id: str, now: datetime, body: bytes, signing: Sequence[str]) -> dict[str, str]:
    timestamp = int(now.timestamp())
    headers = {"webhook-id": message_id, "webhook-timestamp": str(timestamp)}
    if signing:
        signatures = (
            MASK if secret == MASK else signature(secret, message_id, timestamp, body)
            for secret in signing
        )
        headers["webhook-signature"] = " ".join(signatures)
    return headers


def _header(name: str, value: str) -> str:
    if CONTROL.search(value):
        raise PlaceholderError(f"headers.{name}: the value has a control character")
    if not value.isascii():
        raise PlaceholderError(f"headers.{name}: the value has a character that is not ASCII")
    return value


def _url(definition: Definition, values: Mapping[str, Any]) -> str:
    """Fill in the URL; each value is percent-encoded, so that it stays in its place."""

    def encoded(name: str, value: str) -> str:
        # A secret is the owner's own text, and may be several segments of a path.
        within_path = definition.kind == Kind.HTTP and name.startswith("secrets.")
        return quote(value, safe="/" if within_path else "")

    url = placeholders.fill_text(definition.url, values, encoded)
    path = urlsplit(url).path
    if any(segment in (".", "..") for segment in path.split("/")):
        raise PlaceholderError("url: the path would have a segment . or ..")
    return urlunsplit(urlsplit(url))
