"""Log lines about refused messages: one a minute for each reason, with a count.

Anybody who can write to Redis can send a million bad messages. They must not fill the disk.
"""

import logging
import time

from scheduling.logs import event

logger = logging.getLogger(__name__)

LOG_EVERY = 60.0  # seconds between two lines of one event, task and reason
DISTINCT_MAX = 100  # combinations that are counted apart: a sender can make up names
SHOWN = 200  # characters of a value that a line shows

_since: dict[tuple[str, ...], tuple[float, int]] = {}  # when the last line was, refused since


def log(
    name: str, *, level: int = logging.WARNING, task: str = "", why: str = "", **fields: object
) -> None:
    """Log event `name` with the number of messages refused for this reason since its last line.

    `fields` are those of the message that the line is written for.
    """
    task, why = task[:SHOWN], why[:SHOWN]
    now = time.monotonic()
    key: tuple[str, ...] = (name, task, why)
    if key not in _since and len(_since) >= DISTINCT_MAX:
        key, task, why = (name,), "", "for many reasons"
    last, count = _since.get(key, (now - LOG_EVERY, 0))
    if now - last < LOG_EVERY:
        _since[key] = last, count + 1
        return
    _since[key] = now, 0
    event(logger, name, level=level, task=task, messages=count + 1, why=why, **fields)
