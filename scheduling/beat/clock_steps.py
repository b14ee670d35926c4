"""Notices steps of the ledger's clock, and corrects rows that are ahead of it afterwards.

Postgres's clock is the only clock, and an operator, a hypervisor or NTP can step it. After a step
forward, a lease that was renewed a second ago looks expired. After a step back, a lease ends too
late. Each beat compares the ledger's clock with the monotonic clock of its own machine.
"""

import logging
from datetime import datetime
from typing import NamedTuple

from django.conf import settings
from django.db import connection

from scheduling.logs import event

logger = logging.getLogger(__name__)

SHARE = 0.05  # of a lease: a shorter step cannot end a lease before its worker gives it up

# A queued run was due by the clock before the step back. Until the clock reaches that time again,
# a claim would refuse the run, and a lost hint of it would not be noticed.
QUEUED_AHEAD = """
UPDATE scheduling_run SET queued_at = statement_timestamp(),
    run_at = LEAST(run_at, statement_timestamp())
 WHERE state = 'queued' AND queued_at > statement_timestamp()
"""


class _Offset(NamedTuple):
    """Bounds of the seconds by which the ledger's clock is ahead of the monotonic clock."""

    least: float
    most: float
    at: float  # monotonic


class ClockSteps:
    """Notices steps of the ledger's clock.

    The ledger reads its clock between the question and the answer, so each answer bounds the offset
    of the two clocks. If the bounds of two answers do not overlap, the clock was stepped in
    between. A late answer alone gives wide bounds, and is not taken for a step.
    """

    def __init__(self) -> None:
        self._offset: _Offset | None = None

    def step(self, now: datetime, asked: float, answered: float) -> float:
        """Return by how many seconds the clock was stepped since the last calls; 0.0 if it was not.

        Args:
            now: the answer of the ledger's clock.
            asked: the instant of the question; `answered` that of the answer, both monotonic.
        """
        said, lease = now.timestamp(), settings.RUN_LEASE.total_seconds()
        found, known = _Offset(said - answered, said - asked, answered), self._offset
        if known is None:
            self._offset = found
            return 0.0
        step = max(found.least - known.most, 0.0) + min(found.most - known.least, 0.0)
        if abs(step) > lease * SHARE or answered - known.at > lease:
            self._offset = found  # also now and then, since clocks drift
        elif not step:
            least, most = max(found.least, known.least), min(found.most, known.most)
            self._offset = known._replace(least=least, most=most)
        return step if abs(step) > lease * SHARE else 0.0


def settle_queued() -> int:
    """Make queued runs due that a step back has left ahead of the clock; return how many."""
    with connection.cursor() as cursor:
        cursor.execute(QUEUED_AHEAD)
        moved = int(cursor.rowcount)
    if moved:
        event(logger, "queued_runs_settled", runs=moved)
    return moved
