"""A trigger's request before its placeholders are filled in, and its checks."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.db import models

from triggers import placeholders
from triggers.placeholders import PlaceholderError

HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
# Headers that belong to the connection, or that every request has from here.
OWN_HEADERS = {"host", "content-length", "transfer-encoding", "connection", "expect", "upgrade"}
OWN_PREFIXES = ("webhook-", "truebeat-", "proxy-")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Kind(models.TextChoices):
    HTTP = "http", "HTTP request"
    MESSAGE = "message", "message to a broker"


class Method(models.TextChoices):
    POST = "POST"
    GET = "GET"
    PUT = "PUT"
    PATCH = "PATCH"
    DELETE = "DELETE"


SCHEMES = {Kind.HTTP: ("https", "http"), Kind.MESSAGE: ("redis", "amqp")}
TYPES: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "json": lambda value: True,
}


@dataclass(frozen=True)
class Definition:
    """A request or a message with its placeholders."""

    kind: Kind = Kind.HTTP
    method: Method = Method.POST
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    exchange: str = ""
    routing_key: str = ""
    properties: Mapping[str, Any] = field(default_factory=dict)

    def placeholders(self) -> set[str]:
        """Return the names of all placeholders.

        Raises:
            PlaceholderError: a `$` begins none.
        """
        texts = [text for _, text in self.texts()]
        return {name for text in texts for name in placeholders.names_in(text)}

    def texts(self) -> list[tuple[str, str]]:
        """Return each text that may have placeholders, after its place."""
        return [
            (place, text)
            for name in ("url", "headers", "body", "exchange", "routing_key", "properties")
            for place, text in placeholders.texts_in(getattr(self, name), name)
        ]


def check(definition: Definition, families: tuple[str, ...] = ("args", "secrets")) -> None:
    """Refuse a definition that cannot be sent.

    Raises:
        ValidationError: it names the place, such as body.items[0].name.
    """
    if not isinstance(definition.headers, dict):
        raise ValidationError("headers must be a JSON object.")
    for place, text in definition.texts():
        try:
            placeholders.check(text, families)
        except PlaceholderError as error:
            raise ValidationError(f"{place}: {error}.") from None
    for name, value in definition.headers.items():
        _check_header(name, value)
    # A template's URL may be a field, which is checked in each trigger.
    if "fields" not in families or "${fields." not in definition.url:
        _check_url(definition)
    if definition.kind == Kind.MESSAGE and not (definition.exchange or definition.routing_key):
        raise ValidationError("routing_key: a message needs an exchange or a queue.")
    if definition.kind == Kind.MESSAGE and not isinstance(definition.properties, dict):
        raise ValidationError("properties must be a JSON object.")


def check_template(kind: str, declared: Any, definition: Any) -> None:
    """Refuse a template that no trigger can be made from.

    Raises:
        ValidationError: it names the place.
    """
    if not isinstance(declared, dict) or not isinstance(definition, dict):
        raise ValidationError("fields and definition must be JSON objects.")
    for name, field_of in declared.items():
        if not re.fullmatch(placeholders.NAME, name):
            raise ValidationError(f"fields: {name!r} is not a name.")
        if not isinstance(field_of, dict) or field_of.get("type") not in TYPES:
            raise ValidationError(f"fields.{name}: give its type, one of {', '.join(TYPES)}.")
        if "default" in field_of:
            _check_type(name, field_of, field_of["default"])
    made = _definition(kind, definition)
    check(made, ("args", "secrets", "fields"))
    for name in made.placeholders():
        if name.startswith("fields.") and name.removeprefix("fields.") not in declared:
            raise ValidationError(f"definition: ${{{name}}} is not among the fields.")


def filled(kind: str, declared: Any, definition: Any, given: Any) -> Definition:
    """Return a template's definition with the given fields filled in.

    Raises:
        ValidationError: a field is missing, unknown or of another type.
    """
    if unknown := given.keys() - declared.keys():
        raise ValidationError(f"fields: the template has no {', '.join(sorted(unknown))}.")
    values = {}
    for name, field_of in declared.items():
        if name not in given and "default" not in field_of:
            raise ValidationError(f"fields.{name}: the template needs it.")
        values[name] = given.get(name, field_of.get("default"))
        _check_type(name, field_of, values[name])
    return _definition(kind, _with_fields(definition, values))


def _definition(kind: str, parts: Mapping[str, Any]) -> Definition:
    known = {each.name for each in fields(Definition)} - {"kind"}
    if unknown := parts.keys() - known:
        raise ValidationError(f"definition: {', '.join(sorted(unknown))} is not a part of it.")
    method = parts.get("method", Method.POST)
    if method not in Method.values:
        raise ValidationError(f"method: {method!r} is not one of {', '.join(Method.values)}.")
    for name in ("url", "exchange", "routing_key"):
        if not isinstance(parts.get(name, ""), str):
            raise ValidationError(f"{name} must be a text.")
    return Definition(Kind(kind), **{**parts, "method": Method(method)})


FIELD = re.compile(rf"\$\{{fields\.({placeholders.NAME})\}}")


def _with_fields(value: Any, values: Mapping[str, Any]) -> Any:
    """Fill in fields alone: a field's value may have placeholders of its own for later."""
    if isinstance(value, dict):
        return {key: _with_fields(each, values) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_fields(each, values) for each in value]
    if not isinstance(value, str):
        return value
    if whole := FIELD.fullmatch(value):
        return values[whole[1]]
    return FIELD.sub(lambda found: placeholders.as_text(values[found[1]]), value)


def _check_type(name: str, declared: Mapping[str, Any], value: Any) -> None:
    if not TYPES[declared["type"]](value):
        raise ValidationError(f"fields.{name}: {value!r} is not a {declared['type']}.")


def _check_header(name: str, value: Any) -> None:
    if not HEADER_NAME.fullmatch(name):
        raise ValidationError(f"headers: {name!r} is not a header's name.")
    if name.lower() in OWN_HEADERS or name.lower().startswith(OWN_PREFIXES):
        raise ValidationError(f"headers.{name}: Truebeat sets this header itself.")
    if not isinstance(value, str):
        raise ValidationError(f"headers.{name}: give a text.")
    if CONTROL.search(value):
        raise ValidationError(f"headers.{name}: the value has a control character.")


def _check_url(definition: Definition) -> None:
    url, schemes = definition.url, SCHEMES[definition.kind]
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValidationError(f"url: {url!r} cannot be read ({error}).") from None
    if parts.scheme not in schemes:
        raise ValidationError(f"url: begin with {' or '.join(f'{each}://' for each in schemes)}.")
    if not host or not url.isascii() or CONTROL.search(url) or " " in url:
        raise ValidationError("url: this is not the URL of a host.")
    if "$" in parts.netloc.rpartition("@")[2]:
        raise ValidationError("url: the host and the port cannot have a placeholder.")
    if definition.kind == Kind.HTTP and parts.username is not None:
        raise ValidationError("url: give a user and a password in a header.")
    password = (parts.password or "").replace("$$", "")
    if password and not re.fullmatch(rf"\$\{{secrets\.{placeholders.NAME}\}}", password):
        raise ValidationError("url: write the password as ${secrets.NAME}, and add that secret.")
    if parts.fragment:
        raise ValidationError("url: take out the part after #, which is never sent.")
