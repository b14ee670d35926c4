"""claim: the guarded UPDATE that gives a run to this worker."""

import logging
import os
import threading
from typing import Any
from uuid import UUID

from billiard.process import current_process
from django.conf import settings
from django.db import DatabaseError, connection

from scheduling.ids import claim_id as new_claim_id
from scheduling.logs import event
from scheduling.postgres.connections import drop_unclean
from scheduling.postgres.infinity import saturated
from scheduling.postgres.patience import patiently
from scheduling.postgres.prepared import run_alone
from scheduling.runs.running import Claimed
from scheduling.worker_process import WorkerProcess

logger = logging.getLogger(__name__)

CLAIM = f"""
UPDATE scheduling_run SET state = 'running', reason = '', worker = %(worker)s,
    started_at = clock_timestamp(),
    lease_expires_at = clock_timestamp() + %(lease)s::interval, claim_id = %(claim_id)s,
    late_by = CASE WHEN attempt > 1 THEN late_by  -- only the first start can meet the deadline
        WHEN deadline < clock_timestamp() THEN clock_timestamp() - deadline END
 WHERE id = %(id)s AND attempt = %(attempt)s AND task = %(task)s
   AND (state IN ('scheduled', 'queued') AND run_at <= clock_timestamp()
        AND (expires_at IS NULL OR expires_at > clock_timestamp())
        OR state = 'running' AND claim_id = %(claim_id)s)
 RETURNING args, kwargs, options, schedule_name, {saturated("due_at")}, failures, max_attempts,
    follow_ups, COALESCE(given_priority, priority)
"""  # noqa: S608 (constants only)


def claimant() -> int:
    """Return the number under which this thread claims, by which the parent knows its child.

    It is a child's process id. In a pool without child processes it is the thread's id.
    """
    number = os.getpid() if current_process().daemon else threading.get_native_id()
    return number & 0xFFFF_FFFF


def claim_on_a_clean_connection(
    run_id: UUID, attempt: int, task: str, worker: str
) -> Claimed | None:
    """Claim; replace the connection once if an earlier job has broken it."""
    drop_unclean()
    claim_id = new_claim_id(claimant())
    for last in (False, True):
        try:
            return patiently(lambda: claim(run_id, attempt, task, claim_id, worker=worker))
        except DatabaseError as error:
            connection.close()
            if last:  # the hint is sent again
                event(logger, "claim_refused", level=logging.ERROR, run=run_id, error=error)
    return None


def claim(
    run_id: UUID,
    attempt: int,
    task: str,
    claim_id: UUID | None = None,
    *,
    worker: str = WorkerProcess.name,
) -> Claimed | None:
    """Take the run for a worker; return None if this attempt must not start now.

    A worker that lost the answer to its claim repeats it with the same `claim_id`, and gets the run
    again.
    """
    parameters: dict[str, Any] = {
        "id": run_id,
        "attempt": attempt,
        "task": task,
        "worker": worker,
        "lease": settings.RUN_LEASE,
        "claim_id": claim_id or new_claim_id(claimant()),
    }
    rows = run_alone(CLAIM, parameters)
    return Claimed(*rows[0]) if rows else None
