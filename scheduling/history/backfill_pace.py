"""The pace of backfills: beat releases their held runs as others end."""

import logging
from uuid import UUID

from django.db import connection, transaction

from scheduling.execution.cancelling import ask_to_end, cancel_waiting_of_backfill
from scheduling.logs import event
from scheduling.models import WAITING, Run, State

logger = logging.getLogger(__name__)

# A loose scan of the index run_backfill_held: one probe for each backfill that has held runs.
WITH_ROOM = """
WITH RECURSIVE waiting AS (
    (SELECT backfill_id FROM scheduling_run
      WHERE state = 'held' AND backfill_id IS NOT NULL ORDER BY backfill_id LIMIT 1)
  UNION ALL
    SELECT next.backfill_id FROM waiting, LATERAL (
        SELECT backfill_id FROM scheduling_run
         WHERE state = 'held' AND backfill_id > waiting.backfill_id
         ORDER BY backfill_id LIMIT 1) next)
SELECT b.id, b.cancelled_at IS NOT NULL, b.cancelled_by
  FROM waiting JOIN scheduling_backfill b ON b.id = waiting.backfill_id
 WHERE b.cancelled_at IS NOT NULL OR b.concurrency > (
    SELECT count(*) FROM scheduling_run
     WHERE backfill_id = b.id AND state IN ('scheduled', 'queued', 'running'))
"""

# A frozen beat must not keep its rows locked. Held runs are to be read in the order of their index:
# before its statistics cover them, Postgres would sort 100,000 of them to return a few.
RELEASE_SETTINGS = """
SET LOCAL idle_in_transaction_session_timeout = '10s'; SET LOCAL enable_sort = off
"""

LOCK = """
SELECT id FROM scheduling_backfill WHERE id = ANY(%s) AND cancelled_at IS NULL
 ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
"""

# A separate statement after the locks, so that it sees the runs that another beat has released.
RELEASE = """
WITH next AS MATERIALIZED (
    SELECT held.id FROM scheduling_backfill b
     CROSS JOIN LATERAL (
        SELECT count(*) AS runs FROM scheduling_run
         WHERE backfill_id = b.id AND state IN ('scheduled', 'queued', 'running')) started
     CROSS JOIN LATERAL (
        SELECT id FROM scheduling_run WHERE backfill_id = b.id AND state = 'held'
         ORDER BY due_at LIMIT GREATEST(b.concurrency - started.runs, 0)
         FOR NO KEY UPDATE SKIP LOCKED) held
     WHERE b.id = ANY(%s))
UPDATE scheduling_run r SET state = 'scheduled', run_at = statement_timestamp()
  FROM next WHERE r.id = next.id AND r.state = 'held'
"""


def release() -> int:
    """Release held runs of backfills, as far as their concurrency has room; return how many.

    If the process that cancelled a backfill died, its remaining runs are cancelled here.
    """
    with connection.cursor() as cursor:
        cursor.execute(WITH_ROOM)
        found = cursor.fetchall()
    for backfill_id, cancelled, by in found:
        if cancelled:
            cancel_runs(backfill_id, by)
    open_ones = [backfill_id for backfill_id, cancelled, _ in found if not cancelled]
    if not open_ones:
        return 0
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(RELEASE_SETTINGS)
        cursor.execute(LOCK, [open_ones])
        locked = [row[0] for row in cursor.fetchall()]
        cursor.execute(RELEASE, [locked])
        count = int(cursor.rowcount)
    if count:
        event(logger, "backfills_went_on", runs=count)
    return count


def cancel_runs(backfill_id: UUID, by: str) -> tuple[int, int]:
    """Cancel a backfill's waiting runs, interrupt its running ones; return how many of each.

    Rows that another transaction has locked are left out.
    """
    closed = 0
    while more := cancel_waiting_of_backfill(backfill_id, by=by):
        closed += more
    running = Run.objects.filter(backfill_id=backfill_id, cancel_requested_by="")
    return closed, ask_to_end(running, by=by)


def has_uncancelled(backfill_id: UUID) -> bool:
    """Return whether a run of the backfill waits, or runs and has not been asked to end."""
    runs = Run.objects.filter(backfill_id=backfill_id)
    return (
        runs.filter(state__in=WAITING).exists()
        or runs.filter(state=State.RUNNING, cancel_requested_by="").exists()
    )
