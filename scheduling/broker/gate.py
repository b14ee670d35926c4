"""The gate: judges each message that a worker takes from a queue of tasks, as it arrives.

It stands in the worker's parent, before Celery sees the message: what it refuses takes no room in
the pool and reaches no code of Celery's or of a job.
"""

import base64
import logging
import time
from typing import Any

from django.conf import settings
from kombu.utils.json import loads

from scheduling.broker.untracked import all_untracked, is_untracked
from scheduling.logs import event

logger = logging.getLogger(__name__)

# The header of a hint that names the attempt it may start; its presence makes a message a hint.
ATTEMPT = "run_attempt"

EMBEDDED = ("callbacks", "errbacks", "chain", "chord")
TOLD_EVERY = 60.0  # seconds between two log lines about refused messages of one task
TOLD_OF = 100  # tasks that are told apart: anybody can make up names

_app: Any = None


def open_in(app: Any) -> None:
    """Judge what this process takes from its queues of tasks, from now on: it is a worker."""
    global _app
    _app = app


def judges(queue: str) -> bool:
    """Return whether messages of this queue are judged: all but those of remote control and events.

    A queue that this worker has just stopped to consume from may still give one.
    """
    if _app is None:
        return False
    if queue in _app.amqp.queues.consume_from:
        return True
    control, events = f".{_app.conf.control_exchange}.pidbox", f"{_app.conf.event_queue_prefix}."
    return not queue.endswith(control) and not queue.startswith(events)


class _Told:
    """When the refusal of each task's messages was last logged, and how many have come since."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[float, int]] = {}

    def count(self, task: str) -> int:
        """Count a message; return how many there were since the last line, 0 if none is due."""
        now = time.monotonic()
        if task not in self._since and len(self._since) >= TOLD_OF:
            task = ""
        last, count = self._since.get(task, (now - TOLD_EVERY, 0))
        due = now - last >= TOLD_EVERY
        self._since[task] = (now, 0) if due else (last, count + 1)
        return count + 1 if due else 0


_told = _Told()


def judge(raw: dict[str, Any]) -> dict[str, Any] | None:
    """Return the message that Celery shall get, or None: it starts nothing.

    `raw` is what lay in Redis, read as JSON; anybody who can write there may have written it.
    """
    headers = raw["headers"]
    if ATTEMPT in headers or settings.ACCEPT_UNTRACKED or _is_wanted(raw):
        return raw
    task = str(headers.get("task"))[:200]
    if count := _told.count(task):
        event(logger, "untracked_refused", level=logging.WARNING, task=task, messages=count)
    return None


def _is_wanted(raw: dict[str, Any]) -> bool:
    """Return whether UNTRACKED_TASKS names a plain message's task, and all that it would set off.

    An errback runs in the worker's parent, a callback becomes a run: a message of a task that is
    named must start no other.
    """
    task = raw["headers"].get("task")
    if not isinstance(task, str) or not is_untracked(task):
        return False
    try:
        body = raw["body"]
        if raw["properties"]["body_encoding"] == "base64":
            body = base64.b64decode(body)
        _, _, embedded = loads(body)
        return all_untracked([embedded.get(name) for name in EMBEDDED])
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return False
