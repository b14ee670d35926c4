"""Notices steps of the ledger's clock, and corrects rows that are ahead of it afterwards.

Postgres's clock is the only one, and an operator, a hypervisor or NTP can step it. A lease that was
renewed a second before a step forward looks as if it had run out; one from before a step back ends
a minute too late. Each beat compares that clock with the monotonic clock of its own machine.
"""

import logging
from datetime import datetime
from typing import NamedTuple

from django.conf import settings
from django.db import connection

from scheduling.logs import event

logger = logging.getLogger(__name__)

SHARE = 0.05  # of a lease: a shorter step cannot end a lease before its worker has let go of it

# A queued run had come due by the clock of then. Once the clock has gone back, a claim would refuse
# it, and its hint would not be missed, until the clock has come by again.
QUEUED_AHEAD = """
UPDATE scheduling_run SET queued_at = statement_timestamp(),
    run_at = LEAST(run_at, statement_timestamp())
 WHERE state = 'queued' AND queued_at > statement_timestamp()
"""


class _Offset(NamedTuple):
    """How far the ledger's clock is ahead of the monotonic clock, in seconds: between the two."""

    least: float
    most: float
    at: float  # monotonic


class ClockSteps:
    """Notices steps of the ledger's clock.

    An answer was given some time between question and answer, so its clock bounds the offset of the
    two clocks. Where two such bounds do not meet, the clock was stepped in between; an answer that
    came late is none.
    """

    def __init__(self) -> None:
        self._offset: _Offset | None = None

    def step(self, now: datetime, asked: float, answered: float) -> float:
        """Return by how many seconds the clock was stepped since the last calls; 0.0 if it was not.

        Args:
            now: what the ledger's clock said.
            asked: when it was asked, and `answered` when it had answered, by the monotonic clock.
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
    """Let queued runs start that a step back has left ahead of the clock; return how many."""
    with connection.cursor() as cursor:
        cursor.execute(QUEUED_AHEAD)
        moved = int(cursor.rowcount)
    if moved:
        event(logger, "queued_runs_settled", runs=moved)
    return moved
