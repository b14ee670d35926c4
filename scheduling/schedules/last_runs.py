"""Copies the last run and the number of runs to PeriodicTask's columns, later than they happen.

Apart from `fire`, which must not wait for a row that a user holds: such a one is left for another
time.
"""

from collections.abc import Iterable

from django.db import transaction

from scheduling.postgres.sql import lean_cursor

BATCH = 1000

# As far as PeriodicTask's column counts.
COUNT = "LEAST(p.fired_count, 2147483647)"

# A frozen beat must release users' rows.
SETTINGS = "SET LOCAL idle_in_transaction_session_timeout = '10s'"

LOCK = """
SELECT id FROM django_celery_beat_periodictask WHERE id = ANY(%s)
 ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
"""

# A statement of its own, once the locks are held: of a one-off that a user has just armed again,
# the plan is seen as that edit has left it.
COPY = f"""
UPDATE django_celery_beat_periodictask t SET last_run_at = p.last_due_at,
    total_run_count = {COUNT},
    enabled = t.enabled AND NOT (p.done AND p.error = '')
  FROM scheduling_plan p
 WHERE p.schedule_id = t.id AND t.id = ANY(%s) AND p.fired_count > 0
"""  # noqa: S608 (constants only)

FORGOTTEN = f"""
SELECT p.schedule_id FROM scheduling_plan p
  JOIN django_celery_beat_periodictask t ON t.id = p.schedule_id
 WHERE p.schedule_id > %(after)s AND p.fired_count > 0
   AND (t.last_run_at IS DISTINCT FROM p.last_due_at
        OR t.total_run_count <> {COUNT}
        OR t.enabled AND p.done AND p.error = '')
 ORDER BY p.schedule_id LIMIT %(limit)s
"""  # noqa: S608


def copy(schedule_ids: Iterable[int]) -> None:
    """Copy the last run and the count of these schedules, and that a one-off is done."""
    with transaction.atomic(), lean_cursor() as cursor:
        cursor.execute(SETTINGS)
        cursor.execute(LOCK, [list(schedule_ids)])
        cursor.execute(COPY, [[schedule_id for (schedule_id,) in cursor.fetchall()]])


def copy_forgotten(limit: int = BATCH) -> int:
    """Copy last runs that a beat had still to copy when it died; return how many.

    It reads all plans: for once a day.
    """
    count, after = 0, 0
    while True:
        with lean_cursor() as cursor:
            cursor.execute(FORGOTTEN, {"after": after, "limit": limit})
            found = [schedule_id for (schedule_id,) in cursor.fetchall()]
        if not found:
            return count
        copy(found)
        count, after = count + len(found), found[-1]
