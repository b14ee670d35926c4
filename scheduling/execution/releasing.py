"""Releases held runs whose schedule's other runs are final, if `finishing.RELEASE` has not."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from django.db import connection

BATCH = 500  # schedules of which beat releases a run in one step
FIRST_ID, LAST_ID = -(2**31), 2**31 - 1  # of schedules

# A loose scan of the index run_held: a few probes for each schedule that has held runs, however
# many it has. After an outage that can be a thousand for each of thousands of schedules.
RELEASE_HELD = """
UPDATE scheduling_run SET state = 'scheduled' WHERE state = 'held' AND id = ANY (ARRAY(
    WITH RECURSIVE holding AS (
        (SELECT schedule_id FROM scheduling_run WHERE state = 'held' AND backfill_id IS NULL
            AND schedule_id >= %(first)s AND schedule_id <= %(last)s
          ORDER BY schedule_id LIMIT 1)
      UNION ALL
        SELECT next.schedule_id FROM holding, LATERAL (
            SELECT schedule_id FROM scheduling_run
             WHERE state = 'held' AND backfill_id IS NULL AND schedule_id > holding.schedule_id
               AND schedule_id <= %(last)s
             ORDER BY schedule_id LIMIT 1) next)
    SELECT (SELECT h.id FROM scheduling_run h WHERE h.schedule_id = holding.schedule_id
               AND h.state = 'held' AND h.backfill_id IS NULL ORDER BY h.due_at, h.id LIMIT 1)
      FROM holding WHERE NOT EXISTS (
        SELECT 1 FROM scheduling_run o WHERE o.schedule_id = holding.schedule_id
           AND o.backfill_id IS NULL AND o.state IN ('scheduled', 'queued', 'running'))
     LIMIT %(limit)s))
RETURNING queue, priority, CASE WHEN run_at <= statement_timestamp()
    THEN GREATEST(run_at, '0001-01-03Z') END
"""


class Released(NamedTuple):
    """A run that no longer waits for others; `run_at` is empty if its time is still to come."""

    queue: str
    priority: int
    run_at: datetime | None


def release_held(limit: int = BATCH) -> int:
    """Release held runs of up to `limit` schedules, as `release_held_of` does; return how many."""
    return len(release_held_of(FIRST_ID, LAST_ID, limit))


def release_held_of(first: int, last: int, limit: int = BATCH) -> Sequence[Released]:
    """Release the oldest held run of each schedule whose other runs are final or held.

    It finds the runs that `finishing.RELEASE` has missed, of schedules with ids from `first` to
    `last`; return the released runs, of up to `limit` schedules.
    """
    with connection.cursor() as cursor:
        cursor.execute(RELEASE_HELD, {"limit": limit, "first": first, "last": last})
        return [Released(*row) for row in cursor.fetchall()]
