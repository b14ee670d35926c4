"""Sends a queued run back to wait at the same attempt, because its worker cannot run it now."""

import logging
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db import connection

from scheduling.logs import event

logger = logging.getLogger(__name__)

UNKNOWN_FOR = timedelta(seconds=30)  # until a worker is asked again that may know its task

PUT_BACK = """
UPDATE scheduling_run SET state = 'scheduled', queued_at = NULL, reason = %(reason)s,
    run_at = clock_timestamp() + %(wait)s::interval
 WHERE id = %(id)s AND attempt = %(attempt)s AND task = %(task)s AND state = 'queued'
"""


def put_back(run_id: UUID, attempt: int, task: str, reason: str, wait: timedelta) -> bool:
    """Let a queued run wait in the ledger for a while, at the same attempt; return whether it does.

    A run that has been claimed, cancelled or moved meanwhile stays as it is.
    """
    parameters: dict[str, Any] = {
        "id": run_id, "attempt": attempt, "task": task, "reason": reason, "wait": wait,
    }  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(PUT_BACK, parameters)
        return bool(cursor.rowcount)


def hand_back_unknown(run_id: UUID, attempt: int, task: str, worker: str) -> bool:
    """Send a queued run back to wait: the worker that took its hint does not know its task.

    Returns:
        Whether it did. A run that is not queued any more (this was a second hint) stays as it is.
    """
    reason = f"no worker knows task {task} (last asked: {worker})"
    found = put_back(run_id, attempt, task, reason, UNKNOWN_FOR)
    if found:
        event(logger, "task_unknown", level=logging.ERROR, run=run_id, task=task, worker=worker)
    return found
