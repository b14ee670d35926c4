"""recover: ends attempts whose worker is gone or cannot renew its lease."""

import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from celery.exceptions import WorkerLostError
from django.conf import settings
from django.db import connection

from scheduling.beat.clock_steps import ClockSteps
from scheduling.execution.closing import BATCH
from scheduling.execution.finishing import finish
from scheduling.logs import event
from scheduling.postgres.sql import going_on
from scheduling.runs.outcomes import failed_attempt

logger = logging.getLogger(__name__)

SILENCE_MIN = 2.0  # seconds: beat itself sleeps for one between two looks

# Since this instant workers could renew their leases: Postgres has been there since then. GREATEST
# leaves out a NULL. Postgres's own start can be ahead of a clock that was stepped back.
THERE_SINCE = """GREATEST(%(back_at)s::timestamptz, CASE
    WHEN pg_postmaster_start_time() < statement_timestamp() THEN pg_postmaster_start_time()
    ELSE '-infinity' END)"""

# Not the clock alone: it may have been stepped since beat last compared it.
NOW = "LEAST(statement_timestamp(), %(now)s::timestamptz)"

RUNNING = f"""
SELECT id, attempt, task, max_attempts, failures, worker, lease_expires_at,
       lease_expires_at - %(lease)s::interval > {THERE_SINCE} AS counts,
       extract(epoch FROM lease_expires_at - statement_timestamp())::float AS ends_in
  FROM scheduling_run WHERE state = 'running'
"""  # noqa: S608 (constants only)

LOST = f"""{RUNNING}
   AND lease_expires_at >= COALESCE(%(low)s::timestamptz, '-infinity')
   AND lease_expires_at < {NOW} AND {THERE_SINCE} + %(lease)s::interval < {NOW}
 ORDER BY lease_expires_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
"""

# Leases from before a step back: they end later than a lease that is renewed now.
AHEAD = f"""{RUNNING}
   AND lease_expires_at > statement_timestamp() + %(lease)s::interval + interval '1 second'
 ORDER BY lease_expires_at DESC LIMIT %(limit)s
"""


class _Lease(NamedTuple):
    """A lease of a running attempt. `ends_in` is in seconds."""

    run_id: UUID
    attempt: int
    task: str
    max_attempts: int | None
    failures: int
    worker: str
    expires_at: datetime
    counts: bool
    ends_in: float


class SilenceWatch:
    """Watches how long the ledger has been silent, and says from when on leases can be judged.

    While the ledger does not answer, workers cannot renew their leases either. Postgres's own start
    does not tell: a promoted standby, a restarted pooler and a cut network leave it unchanged.
    After a step of the ledger's clock, leases that were renewed before it cannot be judged.
    """

    def __init__(self) -> None:
        self.heard_at: float | None = None
        self.back_at: datetime | None = None
        self.now: datetime | None = None  # of the ledger's clock, at the last look
        self._was_away = False
        self._steps = ClockSteps()
        self._judges_from: float | None = None  # monotonic
        self._ahead_at = 0.0  # monotonic: the next look for leases that end too late
        self._stepped_back = 0.0  # seconds
        self._seen_ahead: dict[tuple[UUID, int, datetime], tuple[float, float]] = {}

    def heard(self) -> None:
        """Note that the ledger has answered."""
        now = time.monotonic()
        patience = max(settings.RUN_LEASE.total_seconds() / 3, SILENCE_MIN)
        self._was_away |= self.heard_at is not None and now - self.heard_at > patience
        self.heard_at = now

    def not_asked(self) -> None:
        """Note that beat has waited for Redis: the ledger was not asked, so it was not silent."""
        self.heard_at = time.monotonic()

    def said(self, now: datetime, asked: float | None = None) -> float:
        """Note that the ledger has answered, and that its clock says `now`.

        Args:
            asked: the instant of the question, by the monotonic clock; None: just now.

        Returns:
            The seconds by which its clock was stepped.
        """
        self.heard()
        self.now, answered = now, time.monotonic()
        step = self._steps.step(now, answered if asked is None else asked, answered)
        lease = settings.RUN_LEASE.total_seconds()
        if step:
            event(logger, "clock_stepped", level=logging.WARNING, seconds=round(step, 3))
            self._stepped_back, self._ahead_at = max(self._stepped_back - step, 0.0), 0.0
        if self._was_away or step:
            self.back_at, self._was_away = now, False
            self._judges_from = answered + lease
            event(logger, "leases_not_judged", level=logging.WARNING, lease=settings.RUN_LEASE)
        if self._judges_from is None:
            # The clock may have been stepped before this beat's first look. A living worker renews
            # its leases within a third of a lease.
            self._judges_from = answered + lease / 3
        return step

    def may_judge(self) -> bool:
        return self._judges_from is not None and time.monotonic() >= self._judges_from

    def looks_ahead(self) -> bool:
        """Return whether it is time to look for leases that end too late."""
        return self.may_judge() and time.monotonic() >= self._ahead_at

    def over_by_now(self, ahead: Iterable[_Lease]) -> list[_Lease]:
        """Return the leases that end too late and were not renewed for the time of a lease.

        The ledger's clock cannot tell, so the monotonic clock counts. A worker with longer leases
        than this beat's renews them before half of their time has passed.
        """
        now, lease, seen, self._seen_ahead = (
            time.monotonic(), settings.RUN_LEASE.total_seconds(), self._seen_ahead, {}
        )  # fmt: skip
        over = []
        for found in ahead:
            key = found.run_id, found.attempt, found.expires_at
            since, ends_in = self._seen_ahead[key] = seen.get(key, (now, found.ends_in))
            if now - since > max(lease, (ends_in - self._stepped_back) / 2):
                over.append(found)
        if not self._seen_ahead:
            self._ahead_at, self._stepped_back = float("inf"), 0.0
        else:
            self._ahead_at = now + 1
        return over


def recover_lost_leases(
    silence: SilenceWatch | None = None, limit: int = BATCH, low: datetime | None = None
) -> int:
    """End the attempts whose lease has expired; return how many.

    While Postgres is away, no worker can renew. So leases are judged only after Postgres has been
    there for the time of one lease. A lease that was last renewed before that does not count as a
    failure of the run.

    Args:
        silence: the beat's watch on Postgres and its clock; None: only Postgres's start counts.
        limit: attempts in a batch.
        low: no lease has expired earlier.
    """
    if silence is not None and not silence.may_judge():
        return 0
    silence = silence or SilenceWatch()
    return _end(_leases(LOST, silence, limit, low), silence)


def recover_leases_ahead(silence: SilenceWatch, limit: int = BATCH) -> int:
    """End attempts whose lease is not renewed, though it lasts by a clock that was stepped back.

    Returns:
        The number of ended attempts.
    """
    return _end(silence.over_by_now(_leases(AHEAD, silence, limit)), silence)


def _leases(
    sql: str, silence: SilenceWatch, limit: int, low: datetime | None = None
) -> list[_Lease]:
    parameters: dict[str, Any] = {
        "lease": settings.RUN_LEASE, "limit": limit, "back_at": silence.back_at, "now": silence.now,
        "low": low,
    }  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return [_Lease(*row) for row in cursor.fetchall()]


def _end(leases: Iterable[_Lease], silence: SilenceWatch) -> int:
    ended = 0
    for lost in leases:
        event(logger, "lease_expired", level=logging.WARNING, run=lost.run_id,
              attempt=lost.attempt, worker=lost.worker)  # fmt: skip
        error = WorkerLostError(f"worker {lost.worker} was lost: its lease ran out")
        outcome = failed_attempt(
            lost.task, lost.max_attempts, lost.failures, error, counts=lost.counts
        )
        with going_on(logger, "repair_failed"):
            ended += finish(lost.run_id, lost.attempt, replace(outcome, lease=lost.expires_at))
        silence.heard()
    return ended
