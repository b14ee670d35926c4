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

# Since when there has been somebody to renew a lease with; GREATEST leaves a NULL out. Postgres's
# own start can be ahead of a clock that was stepped back.
THERE_SINCE = """GREATEST(%(back_at)s::timestamptz, CASE
    WHEN pg_postmaster_start_time() < statement_timestamp() THEN pg_postmaster_start_time()
    ELSE '-infinity' END)"""

# Not the clock of this very moment: it may have been stepped since beat last compared it.
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

# Leases that end later than any could that was renewed by this clock: from before a step back.
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
    """When a beat last heard of the ledger, and since when leases can be judged by its clock.

    A standby that is promoted, a pooler that restarts and a network that is cut leave Postgres's
    own start as it was; but beat has heard nothing meanwhile, and neither have the workers. A clock
    that was stepped says nothing of leases that were renewed before.
    """

    def __init__(self) -> None:
        self.heard_at: float | None = None
        self.back_at: datetime | None = None
        self.now: datetime | None = None  # by its own clock, when it was last asked
        self._was_away = False
        self._steps = ClockSteps()
        self._judges_from: float | None = None  # monotonic
        self._ahead_at = 0.0  # when leases are looked for that end too late
        self._stepped_back = 0.0  # seconds
        self._seen_ahead: dict[tuple[UUID, int, datetime], tuple[float, float]] = {}

    def heard(self) -> None:
        """Note that it is there."""
        now = time.monotonic()
        patience = max(settings.RUN_LEASE.total_seconds() / 3, SILENCE_MIN)
        self._was_away |= self.heard_at is not None and now - self.heard_at > patience
        self.heard_at = now

    def not_asked(self) -> None:
        """Note that beat has waited for something else: that was no silence of the ledger's."""
        self.heard_at = time.monotonic()

    def said(self, now: datetime, asked: float | None = None) -> float:
        """Note that it is there, and that its clock says `now`.

        Args:
            asked: when it was asked, by the monotonic clock; None: just now.

        Returns:
            By how many seconds its clock was stepped.
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
            # The clock may have been stepped before this beat began to look. Whoever lives has
            # renewed its leases after a third of one.
            self._judges_from = answered + lease / 3
        return step

    def may_judge(self) -> bool:
        return self._judges_from is not None and time.monotonic() >= self._judges_from

    def looks_ahead(self) -> bool:
        """Whether it is time to look for leases that end too late."""
        return self.may_judge() and time.monotonic() >= self._ahead_at

    def over_by_now(self, ahead: Iterable[_Lease]) -> list[_Lease]:
        """Return those of the leases that end too late which nobody has renewed for a whole lease.

        They cannot be told by the ledger's clock. One of a worker whose leases are longer than this
        beat's is renewed before half of it has passed.
        """
        now, lease, seen, self._seen_ahead = (
            time.monotonic(), settings.RUN_LEASE.total_seconds(), self._seen_ahead, {}
        )  # fmt: skip
        over = []
        for one in ahead:
            key = one.run_id, one.attempt, one.expires_at
            since, ends_in = self._seen_ahead[key] = seen.get(key, (now, one.ends_in))
            if now - since > max(lease, (ends_in - self._stepped_back) / 2):
                over.append(one)
        if not self._seen_ahead:
            self._ahead_at, self._stepped_back = float("inf"), 0.0
        else:
            self._ahead_at = now + 1
        return over


def recover_lost_leases(
    silence: SilenceWatch | None = None, limit: int = BATCH, low: datetime | None = None
) -> int:
    """End the attempts whose lease has run out; return how many.

    While Postgres is away nobody can renew: leases are judged only after it has been there for
    one, and one that was last renewed before that does not count as the run's failure.

    Args:
        silence: what a beat knows of that, besides when Postgres started; and of its clock.
        limit: attempts in a batch.
        low: no lease that has run out did so earlier.
    """
    if silence is not None and not silence.may_judge():
        return 0
    silence = silence or SilenceWatch()
    return _end(_leases(LOST, silence, limit, low), silence)


def recover_leases_ahead(silence: SilenceWatch, limit: int = BATCH) -> int:
    """End the attempts whose lease nobody renews, though by a clock that was stepped back it lasts.

    Returns:
        How many.
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
