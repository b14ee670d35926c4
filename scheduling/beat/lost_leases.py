"""recover: attempts whose worker is gone, or cannot say that it is there."""

import logging
import time
from dataclasses import replace
from datetime import datetime
from typing import Any

from celery.exceptions import WorkerLostError
from django.conf import settings
from django.db import connection

from scheduling.execution.finishing import finish
from scheduling.execution.waiting import BATCH
from scheduling.logs import event
from scheduling.postgres.sql import going_on
from scheduling.runs.outcomes import failed_attempt

logger = logging.getLogger(__name__)

SILENCE_MIN = 2.0  # seconds: beat itself sleeps for one between two looks

# Since when there has been somebody to renew a lease with; GREATEST leaves a NULL out.
THERE_SINCE = "GREATEST(pg_postmaster_start_time(), %(back_at)s::timestamptz)"

LOST = f"""
SELECT id, attempt, task, max_attempts, failures, worker,
       lease_expires_at - %(lease)s::interval > {THERE_SINCE} AS counts
  FROM scheduling_run
 WHERE state = 'running' AND lease_expires_at < statement_timestamp()
   AND {THERE_SINCE} + %(lease)s::interval < statement_timestamp()
 ORDER BY lease_expires_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
"""  # noqa: S608 (constants only)


class Ledger:
    """When a beat last heard of the ledger, and since when it is back after it was away.

    A standby that is promoted, a pooler that restarts and a network that is cut leave Postgres's
    own start as it was; but beat has heard nothing meanwhile, and neither have the workers.
    """

    def __init__(self) -> None:
        self.heard_at: float | None = None
        self.back_at: datetime | None = None
        self._was_away = False

    def heard(self) -> None:
        """Note that it is there."""
        now = time.monotonic()
        patience = max(settings.RUN_LEASE.total_seconds() / 3, SILENCE_MIN)
        self._was_away |= self.heard_at is not None and now - self.heard_at > patience
        self.heard_at = now

    def not_asked(self) -> None:
        """Note that beat has waited for something else: that was no silence of the ledger's."""
        self.heard_at = time.monotonic()

    def said(self, now: datetime) -> None:
        """Note that it is there, and that its clock says `now`."""
        self.heard()
        if self._was_away:
            self.back_at, self._was_away = now, False
            event(logger, "leases_not_judged", level=logging.WARNING, lease=settings.RUN_LEASE)


def recover_lost_leases(ledger: Ledger | None = None, limit: int = BATCH) -> int:
    """End the attempts whose lease has run out; return how many.

    While Postgres is away nobody can renew: leases are judged only after it has been there for
    one, and one that was last renewed before that does not count as the run's failure.

    Args:
        ledger: what a beat knows of that, besides when Postgres started.
        limit: attempts in a batch.
    """
    ledger = ledger or Ledger()
    parameters: dict[str, Any] = {
        "lease": settings.RUN_LEASE, "limit": limit, "back_at": ledger.back_at
    }  # fmt: skip
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
        ledger.heard()
    return ended
