"""recover: attempts whose worker is gone, or cannot say that it is there."""

import logging
from dataclasses import replace
from typing import Any

from celery.exceptions import WorkerLostError
from django.conf import settings
from django.db import connection

from scheduling.finishing import finish
from scheduling.logs import event
from scheduling.outcomes import failed_attempt
from scheduling.sql import going_on

logger = logging.getLogger(__name__)

LOST = """
SELECT id, attempt, task, max_attempts, failures, worker,
       lease_expires_at - %(lease)s::interval > pg_postmaster_start_time() AS counts
  FROM scheduling_run
 WHERE state = 'running' AND lease_expires_at < statement_timestamp()
   AND pg_postmaster_start_time() + %(lease)s::interval < statement_timestamp()
 ORDER BY lease_expires_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
"""


def recover_lost_leases(limit: int = 500) -> int:
    """End the attempts whose lease has run out; return how many.

    While Postgres is away nobody can renew: leases are judged only after it has been there for
    one, and one that was last renewed before it started does not count as the run's failure.
    """
    parameters: dict[str, Any] = {"lease": settings.RUN_LEASE, "limit": limit}
    with connection.cursor() as cursor:
        cursor.execute(LOST, parameters)
        lost = cursor.fetchall()
    ended = 0
    for run_id, attempt, task, max_attempts, failures, worker, counts in lost:
        event(logger, "lease_expired", level=logging.WARNING, run=run_id, attempt=attempt,
              worker=worker)  # fmt: skip
        error = WorkerLostError(f"worker {worker} was lost: its lease ran out")
        outcome = failed_attempt(task, max_attempts, failures, error, counts=counts)
        with going_on(logger, "repair_failed"):
            ended += finish(run_id, attempt, replace(outcome, lost=True))
    return ended
