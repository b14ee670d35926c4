"""prune: deletes old final runs and their results, in batches that block no work.

Each batch is a separate transaction, takes the oldest runs first and skips locked rows. Only final
runs have a `finished_at`, so unfinished runs are never deleted. Two kinds of runs are kept, however
old they are:

- the run of the last occurrence that a schedule's plan has fired. As long as the schedule exists,
  that row stops the occurrence from being fired again; the plan itself has passed all earlier ones.
- a replay, as long as the run that it repeats exists: without the replay, that run would seem not
  to have been replayed.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import connection

from scheduling.logs import event
from scheduling.models import FINAL, State

logger = logging.getLogger(__name__)

BATCH = 1000
LONGEST = timedelta(days=36_500)
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)

# Sub-selects and not joins: each is one look-up for a row, even if statistics are wrong.
OLD = """
state = %(state)s AND finished_at >= %(since)s AND finished_at < %(before)s
    AND (origin <> 'schedule' OR COALESCE(due_at < (
        SELECT last_due_at FROM scheduling_plan p WHERE p.schedule_id = r.schedule_id), true))
    AND (replay_of IS NULL OR (
        SELECT o.id FROM scheduling_run o WHERE o.id = r.replay_of) IS NULL)
"""

COUNT = f"SELECT count(*) FROM scheduling_run r WHERE {OLD}"  # noqa: S608 (constants only)

DELETE = f"""
WITH old AS MATERIALIZED (
    SELECT id FROM scheduling_run r WHERE {OLD}
     ORDER BY finished_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED),
results AS (
    DELETE FROM django_celery_results_taskresult
     WHERE task_id = ANY (ARRAY(SELECT id::text FROM old))),
gone AS (
    DELETE FROM scheduling_run WHERE id = ANY (ARRAY(SELECT id FROM old)) RETURNING finished_at)
SELECT count(*), max(finished_at) FROM gone
"""  # noqa: S608

# A backfill goes with the last of its runs.
DELETE_BACKFILLS = """
DELETE FROM scheduling_backfill b WHERE created_at < %(before)s
   AND NOT EXISTS (SELECT 1 FROM scheduling_run r WHERE r.backfill_id = b.id)
"""

# A task id may be any text; a run's is a UUID.
DELETE_RESULTS = """
WITH old AS MATERIALIZED (
    SELECT id, task_id, date_done FROM django_celery_results_taskresult
     WHERE date_done >= %(since)s AND (date_done, id) > (%(since)s, %(after)s)
       AND date_done < %(before)s
     ORDER BY date_done, id LIMIT %(limit)s),
gone AS (
    DELETE FROM django_celery_results_taskresult WHERE id = ANY (ARRAY(
        SELECT id FROM old WHERE NOT CASE
            WHEN task_id ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
            THEN EXISTS (SELECT 1 FROM scheduling_run r WHERE r.id = task_id::uuid)
            ELSE false END))
    RETURNING id)
SELECT (SELECT count(*) FROM gone), date_done, id FROM old ORDER BY date_done DESC, id DESC LIMIT 1
"""


def kept_for() -> dict[State, timedelta]:
    """Return how long runs are kept after their end, by state; other states are kept for ever."""
    periods = {
        state: settings.KEEP_FAILED if state == State.FAILED else settings.KEEP_RUNS
        for state in FINAL
    }
    return {state: period for state, period in periods.items() if period > timedelta(0)}


def prune(now: datetime, periods: Mapping[State, timedelta], limit: int = BATCH) -> Counter[State]:
    """Delete the runs that ended longer ago than their state's period, and their results.

    Args:
        now: the instant that the periods count back from.
        periods: how long to keep runs of each of these final states.
        limit: runs in a batch.

    Returns:
        How many runs were deleted, by state.
    """
    deleted = Counter[State]()
    for state, period in periods.items():
        for count in _batches(state, _before(now, period), limit):
            deleted[state] += count
    deleted = +deleted  # without the zeros
    if periods:
        with connection.cursor() as cursor:
            cursor.execute(DELETE_BACKFILLS, {"before": _before(now, min(periods.values()))})
    if deleted:
        event(logger, "runs_pruned", runs=deleted.total(), **dict(deleted))
    return deleted


def count_old(now: datetime, periods: Mapping[State, timedelta]) -> Counter[State]:
    """Return how many runs `prune` would delete, by state."""
    found = Counter[State]()
    with connection.cursor() as cursor:
        for state, period in periods.items():
            before = _before(now, period)
            cursor.execute(COUNT, {"state": state, "since": LONG_AGO, "before": before})
            found[state] = cursor.fetchone()[0]
    return +found


def _before(now: datetime, period: timedelta) -> datetime:
    return now - min(period, LONGEST)


def _batches(state: State, before: datetime, limit: int) -> Iterator[int]:
    # Starts after the last batch, so that its dead index entries are not read again.
    parameters: dict[str, Any] = {"state": state, "before": before, "limit": limit}
    count, since = limit, LONG_AGO
    while count == limit:
        begun = time.monotonic()
        with connection.cursor() as cursor:
            cursor.execute(DELETE, {**parameters, "since": since})
            count, latest = cursor.fetchone()
        since = latest or since
        yield count
        if count == limit:  # leaves half of the time to other transactions
            time.sleep(time.monotonic() - begun)


def prune_results(before: datetime, limit: int = BATCH) -> int:
    """Delete the results stored before an instant that belong to no run; return how many.

    The result of a run is deleted with the run.
    """
    deleted, since, after = 0, LONG_AGO, 0
    while True:
        with connection.cursor() as cursor:
            cursor.execute(
                DELETE_RESULTS,
                {"before": before, "since": since, "after": after, "limit": limit},
            )
            row = cursor.fetchone()
        if row is None:
            return deleted
        count, since, after = row
        deleted += count
