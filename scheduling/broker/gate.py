"""The gate: judges each message that a worker takes from a task queue, before Celery sees it.

It stands in the worker's parent, before Celery sees the message: what it refuses takes no room in
the pool and reaches no code of Celery's or of a job.

A hint is the id of a run, an attempt, a task and time limits, signed by a beat of this ledger. All
else that its message says, anybody may have written who can write to Redis; so Celery is handed
another message, made here, that says nothing more.
"""

import base64
from collections.abc import Callable, Collection
from itertools import count
from typing import Any
from uuid import UUID

from django.conf import settings
from kombu.serialization import prepare_accept_content
from kombu.utils.json import dumps, loads

from scheduling.base_job import BaseJob
from scheduling.broker import refusals
from scheduling.broker.signing import ATTEMPT, LEDGER, SIGNATURE, TASK, is_signed
from scheduling.broker.untracked import all_untracked, is_untracked

EMBEDDED = ("callbacks", "errbacks", "chain", "chord")
MEDIUM = 6

# A worker sets these.
ledger = ""  # whose hints are its own
report_unknown: Callable[[UUID, int, str], None] = lambda run, attempt, task: None  # noqa: E731

_app: Any = None
_frame: dict[str, Any] = {}
_tags = count(1)


class ForeignHintError(Exception):
    """A hint of another ledger: another installation uses this Redis."""

    def __init__(self, ledger: str) -> None:
        super().__init__(ledger)
        self.ledger = ledger


def open_in(app: Any) -> None:
    """Judge what this process takes from its queues of tasks, from now on: it is a worker."""
    global _app, _frame
    made: Any = app.amqp.as_task_v2("", "")
    _app, _frame = app, {
        "headers": made.headers,
        "body": base64.b64encode(dumps(made.body).encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
    }  # fmt: skip


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


def accepted() -> Collection[str]:
    """Return the content types that this worker accepts."""
    return prepare_accept_content(_app.conf.accept_content) or ()


def judge(raw: Any, queue: str) -> dict[str, Any] | None:
    """Return the message that Celery shall get, or None: it starts nothing.

    Args:
        raw: what lay in Redis, read as JSON; anybody who can write there may have written it.

    Raises:
        ForeignHintError: it is another ledger's.
    """
    headers = raw.get("headers") if isinstance(raw, dict) else None
    if not isinstance(headers, dict):
        refusals.tell("message_refused", why="it has no headers")
        return None
    if ATTEMPT in headers:
        return _judge_hint(raw, headers, queue)
    if settings.ACCEPT_UNTRACKED or _is_wanted(raw, headers):
        return raw  # type: ignore[no-any-return]
    refusals.tell("untracked_refused", task=str(headers.get("task")))
    return None


# --- Hints ---------------------------------------------------------------------------------------


def _judge_hint(raw: dict[str, Any], headers: dict[str, Any], queue: str) -> dict[str, Any] | None:
    texts: list[Any] = [headers.get(name) for name in ("id", TASK, LEDGER, SIGNATURE)]
    run_id, task, whose, signature = texts
    attempt, limits = headers[ATTEMPT], headers.get("timelimit")
    if not all(isinstance(text, str) for text in texts):
        refusals.tell("hint_refused", task=str(task), why="it is not signed")
        return None
    if whose != ledger:
        raise ForeignHintError(whose)
    if not is_signed(signature, ledger, queue, run_id, attempt, task, limits):
        why = "it is not signed with this worker's HINT_KEY or SECRET_KEY"
        refusals.tell("hint_refused", task=task, why=why)
        return None
    if not isinstance(_app.tasks.get(task), BaseJob):
        report_unknown(UUID(run_id), attempt, task)
        return None
    return _made_anew(raw, run_id, queue, task, {ATTEMPT: attempt, "timelimit": limits,
                      TASK: task, LEDGER: whose, SIGNATURE: signature})  # fmt: skip


def _made_anew(
    raw: dict[str, Any], run_id: str, queue: str, task: str, ours: dict[str, Any]
) -> dict[str, Any]:
    """Return the message of a hint that says what was signed, and nothing else."""
    properties = raw.get("properties")
    priority = properties.get("priority") if isinstance(properties, dict) else None
    known = type(priority) is int and 0 <= priority <= 9
    return {
        **_frame,
        "headers": {**_frame["headers"], "id": run_id, "root_id": run_id, "task": task, **ours},
        "properties": {
            "correlation_id": run_id,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": priority if known else MEDIUM,  # in which list it is put back
            "body_encoding": "base64",
            "delivery_tag": f"{run_id}.{next(_tags)}",
        },
    }


# --- Plain messages ------------------------------------------------------------------------------


def _is_wanted(raw: dict[str, Any], headers: dict[str, Any]) -> bool:
    """Return whether UNTRACKED_TASKS names a plain message's task, and all that it would set off.

    An errback runs in the worker's parent, a callback becomes a run: a message of a task that is
    named must start no other.
    """
    task = headers.get("task")
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
