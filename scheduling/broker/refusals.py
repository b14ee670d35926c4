"""Logs refused messages: one line a minute for each reason, with a count.

Anybody who can write to Redis can send a million of them: they must not fill the disk.
"""

import logging
import time

from scheduling.logs import event

logger = logging.getLogger(__name__)

TOLD_EVERY = 60.0  # seconds between two lines of one event, task and reason
TOLD_OF = 100  # of these that are told apart: anybody can make up names
SHOWN = 200  # characters of a value that a line shows

_since: dict[tuple[str, ...], tuple[float, int]] = {}


def tell(name: str, *, level: int = logging.WARNING, task: str = "", why: str = "") -> None:
    """Log event `name` with the messages that were refused for this since the last such line."""
    task, why = task[:SHOWN], why[:SHOWN]
    now = time.monotonic()
    key: tuple[str, ...] = (name, task, why)
    if key not in _since and len(_since) >= TOLD_OF:
        key, task, why = (name,), "", "for many reasons"
    last, count = _since.get(key, (now - TOLD_EVERY, 0))
    if now - last < TOLD_EVERY:
        _since[key] = last, count + 1
        return
    _since[key] = now, 0
    event(logger, name, level=level, task=task, messages=count + 1, why=why)
