"""Remote control: workers obey signed commands, and answer questions from any sender.

Commands (`shutdown`, `time_limit`, `rate_limit`, `revoke`, ...) come by Redis, as hints do.
Anybody who can write there could stop workers and end their runs with them. So the app signs its
commands with the key of hints; each command counts once, and for a minute.
"""

import hmac
import logging
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from celery.worker.control import Panel
from django.conf import settings
from kombu.utils.json import dumps, loads

from scheduling.broker.signing import keys
from scheduling.ids import uuid7
from scheduling.logs import event

logger = logging.getLogger(__name__)

VALID_FOR = 60.0  # seconds, by the clocks of both machines

_seen: dict[str, float] = {}  # commands that were obeyed, and when


def is_command(name: str) -> bool:
    """Return whether a word of remote control changes something, and does not only ask."""
    meta = Panel.meta.get(name)
    return meta is not None and meta.type == "control"


def signed(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a command as they are sent: signed."""
    call, stamp = dumps(arguments), f"{time.time():.3f} {uuid7()}"
    return {"call": call, "stamp": stamp, "signature": _signature(keys()[0], name, call, stamp)}


def guard() -> None:
    """Let this worker obey signed commands only, unless ACCEPT_UNSIGNED_CONTROL is on."""
    commands = {Panel.data[name] for name in Panel.meta if is_command(name)}  # also by an alias
    for name, handler in list(Panel.data.items()):
        if handler in commands and not hasattr(handler, "is_guard"):
            Panel.data[name] = _guarded(name, handler)


def _guarded(name: str, handler: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(handler)
    def obey(state: Any, **arguments: Any) -> Any:
        if arguments.keys() == {"call", "stamp", "signature"}:
            why = _why_not(name, **arguments)
            arguments = {} if why else loads(arguments["call"])
        else:
            why = "" if settings.ACCEPT_UNSIGNED_CONTROL else "it is not signed"
        if why:
            event(logger, "command_refused", level=logging.WARNING, command=name, why=why)
            return {"error": f"refused: {why}"}
        return handler(state, **arguments)

    obey.is_guard = True  # type: ignore[attr-defined]
    return obey


def _why_not(name: str, call: Any, stamp: Any, signature: Any) -> str:
    """Return why a signed command does not count, "" if it does; each counts once."""
    if not all(isinstance(text, str) and text.isascii() for text in (call, stamp, signature)):
        return "it is not signed"
    found = (_signature(key, name, call, stamp) for key in keys())
    if not any(hmac.compare_digest(one, signature) for one in found):
        return "it is not signed with this worker's HINT_KEY or SECRET_KEY"
    now = time.time()
    if abs(now - float(stamp.split()[0])) > VALID_FOR:
        return f"it is more than {VALID_FOR:g} s old, or a clock is wrong"
    for old in [one for one, at in _seen.items() if now - at > 2 * VALID_FOR]:
        del _seen[old]
    if stamp in _seen:
        return "it was obeyed already"
    _seen[stamp] = now
    return ""


def _signature(key: bytes, name: str, call: str, stamp: str) -> str:
    text = "\0".join(("remote control", name, stamp, call)).encode()
    return hmac.digest(key, text, "sha256").hex()
