"""What beat looks for: one statement a tick, a cheap probe of an index for each kind of work."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from django.conf import settings

from scheduling.beat import dispatch
from scheduling.failures import alerts
from scheduling.postgres.prepared import run_prepared

# Entries of plans that fired long ago lie at the beginning of their index for as long as an old
# snapshot is held: to look past them all takes milliseconds then, and is done the more rarely.
LOOK_BACK = timedelta(minutes=1)
FAR_BACK_EVERY = 1.0  # seconds between looks beyond this margin, at least
FAR_BACK_SHARE = 100  # and this many times what the last one took
FAR_BACK_WITHIN = 60.0  # seconds, at most
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)

LOOK = """
SELECT statement_timestamp(),
    (SELECT extract(epoch FROM min(next_due_at) - clock_timestamp())::float
       FROM scheduling_plan WHERE next_due_at > %(low)s),
    EXISTS (SELECT 1 FROM scheduling_plan
             WHERE needs_plan AND (next_due_at IS NULL OR next_due_at > plan_from)),
    EXISTS (SELECT 1 FROM scheduling_run
             WHERE state = 'running' AND lease_expires_at < statement_timestamp()),
    EXISTS (SELECT 1 FROM scheduling_run WHERE expires_at <= statement_timestamp()
               AND state IN ('scheduled', 'held', 'queued')),
    EXISTS (SELECT 1 FROM scheduling_run WHERE state = 'held' AND backfill_id IS NULL),
    EXISTS (SELECT 1 FROM scheduling_run WHERE state = 'held' AND backfill_id IS NOT NULL),
    EXISTS (SELECT 1 FROM scheduling_run WHERE state = 'queued'
               AND queued_at < statement_timestamp() - %(lost_after)s::interval),
    EXISTS (SELECT 1 FROM scheduling_run WHERE deadline <= statement_timestamp()
               AND priority > 0 AND state IN ('scheduled', 'held', 'queued'))
    OR EXISTS (SELECT 1 FROM scheduling_run
             WHERE deadline <= statement_timestamp() + %(deadline_near)s::interval
               AND priority > 3 AND state IN ('scheduled', 'held', 'queued')),
    EXISTS (SELECT 1 FROM scheduling_failure WHERE noted_at > %(low)s),
    EXISTS (SELECT 1 FROM scheduling_failuregroup WHERE news <> '')
    AND NOT EXISTS (SELECT 1 FROM scheduling_run WHERE unique_key = %(alert)s
               AND state IN ('scheduled', 'held', 'queued', 'running'))
"""


def look_settings() -> dict[str, Any]:
    """Return the parameters of LOOK, all but its `low`."""
    return {
        "lost_after": dispatch.LOST_AFTER,
        "deadline_near": settings.DEADLINE_NEAR,
        "alert": alerts.KEY,
    }


class Look(NamedTuple):
    """What there is to do, in LOOK's order; one cheap probe of an index for each."""

    now: datetime
    next_due_in: float | None
    to_plan: bool
    leases_lost: bool
    expired: bool
    held: bool
    backfills_held: bool
    hints_old: bool
    deadlines: bool
    failed: bool
    news: bool


class Lookout:
    """Looks for work; what is due and lies before `low` need not be looked for in this tick."""

    def __init__(self) -> None:
        self.low = LONG_AGO
        self._far_back_at = 0.0

    def look(self) -> Look:
        """Return what there is to do now."""
        begun = time.monotonic()
        far_back = begun >= self._far_back_at
        parameters = {**look_settings(), "low": LONG_AGO if far_back else self.low}
        (found,) = run_prepared(LOOK, parameters)
        look = Look(*found)
        self.low = LONG_AGO if far_back else look.now - LOOK_BACK
        if far_back:
            wait = max(FAR_BACK_EVERY, FAR_BACK_SHARE * (time.monotonic() - begun))
            self._far_back_at = begun + min(wait, FAR_BACK_WITHIN)
        return look

    def far_back_within(self, seconds: float) -> None:
        """Look all the way back in at most so many seconds."""
        self._far_back_at = min(self._far_back_at, time.monotonic() + seconds)
