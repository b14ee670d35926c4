"""Checks the form of a message from Redis, field by field, before Celery sees it.

Celery and kombu trust each message: one header of an odd type ends a worker, or takes its only
place in the pool for good. So each field of a plain message is checked here. The message is handed
on only if every field that Celery reads is of a kind that Celery writes. Other headers stay as they
are: a task may read its own.
"""

import base64
import binascii
import bz2
import lzma
import math
import zlib
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Any

from celery.app.task import Context
from kombu.serialization import loads
from kombu.utils import json

LONGEST_MESSAGE = 64 * 2**20  # bytes, also once it is decompressed
LONGEST_NAME = 1000  # characters of an id, or of a task's name
LONGEST_HEADERS = 256 * 2**10  # characters of all headers together: stamps, representations
MOST_SECONDS = 366 * 86_400.0  # of a time limit, which a timer must be able to count down
FIRST_YEAR, LAST_YEAR = 1970, 9000

Fields = Mapping[str, Any]


class UnfitError(ValueError):
    """A message that Celery itself would not write; the text says why."""


def read(item: bytes | str) -> dict[str, Any]:
    """Return an item of a Redis list as a message; the content of its parts is not checked.

    Raises:
        UnfitError: it is not a JSON object with headers and properties, or it is too long.
    """
    if len(item) > LONGEST_MESSAGE:
        raise UnfitError("it is too long")
    try:
        message = json.loads(item)
    except Exception:  # kombu's typed values ("__type__") can raise anything
        raise UnfitError("it is not JSON") from None
    return with_parts(message)


def with_parts(message: Any) -> dict[str, Any]:
    """Return a message that has headers and properties.

    Raises:
        UnfitError: it is not a JSON object, or headers or properties are not.
    """
    if not isinstance(message, dict):
        raise UnfitError("it is not a JSON object")
    for name in ("headers", "properties"):
        if message.get(name) is None:
            message[name] = {}
        elif not isinstance(message[name], dict):
            raise UnfitError(f"its {name} are not an object")
    return message


def plain(message: dict[str, Any], queue: str, accept: Collection[str]) -> dict[str, Any]:
    """Check a plain message and return it in a form that cannot harm Celery.

    Args:
        message: as `read` returns it; it is changed.
        accept: content types that workers accept.

    Raises:
        UnfitError: a field is not of a kind that Celery writes.
    """
    headers, properties = message["headers"], message["properties"]
    tag = properties.get("delivery_tag")
    properties["delivery_tag"] = _text("delivery_tag", tag)
    priority = properties.get("priority")
    properties["priority"] = priority if type(priority) is int and 0 <= priority <= 9 else 0
    _check("properties", properties, PROPERTIES)
    info = properties.get("delivery_info")
    exchange = info.get("exchange") if isinstance(info, dict) else None
    # A message is put back into the queue that it came from, not into another that it names.
    properties["delivery_info"] = {
        "exchange": exchange if isinstance(exchange, str) and len(exchange) < LONGEST_NAME else "",
        "routing_key": queue,
    }
    _check("headers", headers, HEADERS)
    for name in headers:
        if name in OF_CONTEXT:
            raise UnfitError("a header has the name of a method")
    _check_size(headers)
    body = _body(message, headers, properties)
    payload = _payload(message, body, accept)
    if "task" in headers:
        _check_call(payload, headers)
    elif isinstance(payload, dict):  # protocol 1 says all in its body
        _check("body", payload, {**HEADERS, **OF_BODY})
        if not {"task", "id", "args", "kwargs"} <= payload.keys():
            raise UnfitError("it is not a task's message")
    else:
        raise UnfitError("it is not a task's message")
    return message


def _check_call(payload: Any, headers: Fields) -> None:
    if "id" not in headers:
        raise UnfitError("it has no id")
    if isinstance(payload, dict) and "args" in payload:  # headers of protocol 2, a body of 1
        _check("body", payload, {**HEADERS, **OF_BODY})
        if "kwargs" not in payload:
            raise UnfitError("its body has no kwargs")
        return
    if not isinstance(payload, list) or len(payload) != 3:
        raise UnfitError("its body is not args, kwargs and options")
    args, kwargs, embedded = payload
    if not (isinstance(args, list) and isinstance(kwargs, dict)):
        raise UnfitError("its args and kwargs are not a list and an object")
    if embedded is not None and not isinstance(embedded, dict):
        raise UnfitError("the options of its body are not an object")
    _check("options of the body", embedded or {}, EMBEDDED)


def _body(message: dict[str, Any], headers: dict[str, Any], properties: dict[str, Any]) -> bytes:
    """Return the body as its sender's serializer wrote it; the message holds it so afterwards."""
    body = message.get("body")
    if not isinstance(body, str):
        raise UnfitError("its body is not text")
    encoding = properties.get("body_encoding")
    try:
        raw = base64.b64decode(body) if encoding == "base64" else body.encode()
    except (binascii.Error, ValueError):
        raise UnfitError("its body cannot be decoded") from None
    compression = headers.get("compression")
    if compression is not None:
        raw = _decompressed(raw, compression)
        del headers["compression"]
        properties["body_encoding"] = "base64"
        message["body"] = base64.b64encode(raw).decode()
    return raw


def _decompressed(raw: bytes, compression: object) -> bytes:
    """Return a compressed body, which may be a bomb, as long as it is no longer than a message."""
    kinds: dict[object, Callable[[], Any]] = {
        **dict.fromkeys(("application/x-gzip", "gzip", "zlib"), zlib.decompressobj),
        **dict.fromkeys(("application/x-bz2", "bzip2", "bzip"), bz2.BZ2Decompressor),
        **dict.fromkeys(("application/x-lzma", "lzma", "xz"), lzma.LZMADecompressor),
    }
    make = kinds.get(compression) if isinstance(compression, str) else None
    if make is None:
        raise UnfitError("its compression is not known here")
    try:
        decompressor = make()
        found: bytes = decompressor.decompress(raw, LONGEST_MESSAGE)
    except (zlib.error, OSError, ValueError, EOFError, lzma.LZMAError):
        raise UnfitError("its body cannot be decompressed") from None
    if not decompressor.eof:
        raise UnfitError("its body is too long, or cut off")
    return found


def _payload(message: Fields, body: bytes, accept: Collection[str]) -> Any:
    kind, encoding = message.get("content-type"), message.get("content-encoding")
    if not isinstance(kind, str) or kind not in accept:
        raise UnfitError("its content type is not accepted")
    if encoding is not None and encoding not in ENCODINGS:
        raise UnfitError("its content encoding is not known")
    try:
        return loads(body, kind, encoding or "utf-8", accept=set(accept))
    except Exception:  # a serializer may raise anything
        raise UnfitError("its body cannot be read") from None


# --- Fields --------------------------------------------------------------------------------------

Check = Callable[[Any], bool]

ENCODINGS = ("utf-8", "UTF-8", "us-ascii", "binary", "ascii-8bit")


def _check(part: str, fields: Fields, checks: Mapping[str, Check]) -> None:
    for name, check in checks.items():
        value = fields.get(name)
        if value is not None and not check(value):
            raise UnfitError(f"{part}: {name} is not of a kind that Celery writes")


def _check_size(headers: Fields) -> None:
    try:
        size = len(json.dumps(headers))
        json.dumps(headers, ensure_ascii=False).encode()  # a lone surrogate goes no further
    except (ValueError, TypeError, RecursionError):
        raise UnfitError("its headers cannot be written again") from None
    if size > LONGEST_HEADERS:
        raise UnfitError("its headers are too long")


def _text(name: str, value: object) -> str:
    if not _is_name(value):
        raise UnfitError(f"its {name} is not a text")
    return value  # type: ignore[return-value]


def _is_name(value: object) -> bool:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_NAME or "\0" in value:
        return False
    return value.isascii() or _is_unicode(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and (value.isascii() or _is_unicode(value))


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_instant(value: object) -> bool:
    """Whether it is an ISO time that every zone's offset can be added to."""
    if not isinstance(value, str):
        return False
    try:
        return FIRST_YEAR <= datetime.fromisoformat(value).year <= LAST_YEAR
    except ValueError:
        return False


def _is_seconds(value: object) -> bool:
    if value is None:
        return True
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 < value <= MOST_SECONDS  # type: ignore[arg-type,operator]


def _is_limits(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_seconds, value))


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_name, value))


def _is_signature(value: object) -> bool:
    """Whether Celery can make a signature of it; Celery reads its content in a child."""
    if not isinstance(value, dict):
        return False
    kinds = {"task": str, "args": list, "kwargs": dict, "options": dict}
    return isinstance(value.get("task"), str) and all(
        isinstance(value.get(name) or kind(), kind) for name, kind in kinds.items()
    )


def _is_signatures(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_signature, value))


def _is_one_or_more(value: object) -> bool:
    return _is_signature(value) or _is_signatures(value)


def _is_mapping(value: object) -> bool:
    return isinstance(value, dict)


HEADERS: Mapping[str, Check] = {
    **dict.fromkeys(("id", "task", "root_id", "parent_id", "group", "origin", "lang"), _is_name),
    **dict.fromkeys(("shadow", "argsrepr", "kwargsrepr", "meth"), _is_text),
    **dict.fromkeys(("eta", "expires"), _is_instant),
    **dict.fromkeys(("retries", "group_index", "replaced_task_nesting"), _is_count),
    **dict.fromkeys(("ignore_result", "redelivered"), _is_flag),
    "timelimit": _is_limits,
    "stamps": _is_mapping,
    "stamped_headers": _is_texts,
    "headers": _is_mapping,
    "properties": _is_mapping,
    "compression": _is_name,
}
PROPERTIES: Mapping[str, Check] = {
    "correlation_id": _is_name,
    "reply_to": _is_text,
    "body_encoding": lambda encoding: encoding in ("base64", "utf-8"),
}
EMBEDDED: Mapping[str, Check] = {
    "callbacks": _is_one_or_more,
    "errbacks": _is_one_or_more,
    "chain": _is_signatures,
    "chord": _is_signature,
}
OF_BODY: Mapping[str, Check] = {
    **{name: check for name, check in EMBEDDED.items() if name != "chain"},
    "args": lambda args: isinstance(args, list),
    "kwargs": _is_mapping,
    "utc": _is_flag,
    "taskset": _is_name,
}
# Celery's request is an object with a message's headers as its attributes.
OF_CONTEXT = {name for name in dir(Context) if callable(getattr(Context, name))} | {"__dict__"}
