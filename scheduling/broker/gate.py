"""The gate: judges each message that a worker takes from a task queue, before Celery sees it.

The gate stands in the worker's parent, before Celery sees the message. A refused message takes no
room in the pool and reaches no code of Celery's or of a job.

A hint is the id of a run, an attempt, a task and time limits, signed by a beat of this ledger.
Anybody who can write to Redis can have written the rest of its message. So Celery gets another
message, made here, that holds the signed fields alone.
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


class ForeignHintError(Exception):
    """A hint of another ledger: another installation uses this Redis."""

    def __init__(self, ledger: str) -> None:
        super().__init__(ledger)
        self.ledger = ledger


class Gate:
    """The gate of one worker.

    Args:
        report_unknown: called with run, attempt and task of a hint whose task is unknown here.
    """

    def __init__(self, app: Any, report_unknown: Callable[[UUID, int, str], None]) -> None:
        self.ledger = ""  # whose hints are this worker's; the ledger says it once it can be asked
        self._app = app
        self._report_unknown = report_unknown
        self._tags = count(1)
        made: Any = app.amqp.as_task_v2("", "")
        self._frame: dict[str, Any] = {
            "headers": made.headers,
            "body": base64.b64encode(dumps(made.body).encode()).decode(),
            "content-type": "application/json",
            "content-encoding": "utf-8",
        }

    def judges(self, queue: str) -> bool:
        """Return whether messages of this queue are judged: all except remote control and events.

        A queue that this worker has just stopped to consume from may still give a message.
        """
        app = self._app
        if queue in app.amqp.queues.consume_from:
            return True
        control, events = f".{app.conf.control_exchange}.pidbox", f"{app.conf.event_queue_prefix}."
        return not queue.endswith(control) and not queue.startswith(events)

    def accepted(self) -> Collection[str]:
        """Return the content types that this worker accepts."""
        return prepare_accept_content(self._app.conf.accept_content) or ()

    def judge(self, raw: Any, queue: str) -> dict[str, Any] | None:
        """Return the message for Celery, or None if this one must start nothing.

        Args:
            raw: a message from Redis, read as JSON; it can have any shape and content.

        Raises:
            ForeignHintError: the hint is another ledger's.
        """
        headers = raw.get("headers") if isinstance(raw, dict) else None
        if not isinstance(headers, dict):
            refusals.log("message_refused", why="it has no headers")
            return None
        if ATTEMPT in headers:
            return self._judge_hint(raw, headers, queue)
        if settings.ACCEPT_UNTRACKED or _is_wanted(raw, headers):
            return raw  # type: ignore[no-any-return]
        refusals.log("untracked_refused", task=str(headers.get("task")))
        return None

    def _judge_hint(
        self, raw: dict[str, Any], headers: dict[str, Any], queue: str
    ) -> dict[str, Any] | None:
        texts: list[Any] = [headers.get(name) for name in ("id", TASK, LEDGER, SIGNATURE)]
        run_id, task, ledger, signature = texts
        attempt, limits = headers[ATTEMPT], headers.get("timelimit")
        if not all(isinstance(text, str) for text in texts):
            refusals.log("hint_refused", task=str(task), why="it is not signed")
            return None
        if ledger != self.ledger:
            raise ForeignHintError(ledger)
        if not is_signed(signature, ledger, queue, run_id, attempt, task, limits):
            why = "it is not signed with this worker's HINT_KEY or SECRET_KEY"
            refusals.log("hint_refused", task=task, why=why)
            return None
        if not isinstance(self._app.tasks.get(task), BaseJob):
            self._report_unknown(UUID(run_id), attempt, task)
            return None
        return self._remade(raw, run_id, queue, task, {ATTEMPT: attempt, "timelimit": limits,
                            TASK: task, LEDGER: ledger, SIGNATURE: signature})  # fmt: skip

    def _remade(
        self, raw: dict[str, Any], run_id: str, queue: str, task: str, signed: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the message of a hint, with the signed fields and no other of the sender's."""
        properties = raw.get("properties")
        priority = properties.get("priority") if isinstance(properties, dict) else None
        known = type(priority) is int and 0 <= priority <= 9
        headers = self._frame["headers"]
        return {
            **self._frame,
            "headers": {**headers, "id": run_id, "root_id": run_id, "task": task, **signed},
            "properties": {
                "correlation_id": run_id,
                "reply_to": "",
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": queue},
                "priority": priority if known else MEDIUM,  # in which list it is put back
                "body_encoding": "base64",
                "delivery_tag": f"{run_id}.{next(self._tags)}",
            },
        }


def _is_wanted(raw: dict[str, Any], headers: dict[str, Any]) -> bool:
    """Return whether UNTRACKED_TASKS names a plain message's task, and each task it would set off.

    An errback runs in the worker's parent, and a callback becomes a run. So a message of a named
    task must not start another one.
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
