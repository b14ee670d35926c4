"""escalate: waiting runs get a higher priority near their deadline, or after a long wait.

Only the ledger is written. A run whose hint lies in Redis becomes scheduled again, and `publish`
pushes a second hint into its new lane, in order and if that lane has room. The first hint stays in
its lane. The hint that a worker takes first starts the run, and the other is refused. Until then
the old hint takes up room in the window of its lane.
"""

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import connection

from scheduling.beat.lanes import Lanes
from scheduling.logs import event
from scheduling.models import WAITING_SQL, Priority
from scheduling.postgres.sql import arrays
from scheduling.runs.hints import Lane

logger = logging.getLogger(__name__)

BATCH = 500
AGED_BATCH = 100  # see `escalate_for_age`
AGE_EVERY = timedelta(seconds=10)  # between looks for old ones, at most

ESCALATE = f"""
UPDATE scheduling_run r SET priority = %(to)s, queued_at = NULL,
    given_priority = COALESCE(r.given_priority, r.priority),
    state = CASE r.state WHEN 'queued' THEN 'scheduled' ELSE r.state END
 WHERE r.id = ANY (ARRAY(SELECT id FROM chosen)) AND r.state IN ({WAITING_SQL})
RETURNING r.id, r.task, r.deadline, r.queue, CASE WHEN run_at <= statement_timestamp()
    THEN GREATEST(run_at, '0001-01-03Z') END
"""  # noqa: S608 (constants only)

# Each statement has an index of its own, which leaves out runs that are escalated already.
BY_DEADLINE = """
WITH chosen AS MATERIALIZED (
    SELECT id FROM scheduling_run
     WHERE {which} AND state IN ({waiting})
       AND deadline >= COALESCE(%(low)s::timestamptz, '-infinity')
     ORDER BY deadline LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED)
{rest}"""
PASSED = BY_DEADLINE.format(
    which="deadline <= statement_timestamp() AND priority > 0", waiting=WAITING_SQL, rest=ESCALATE
)
NEAR = BY_DEADLINE.format(
    which="""deadline > statement_timestamp()
       AND deadline <= statement_timestamp() + %(near)s::interval AND priority > 3""",
    waiting=WAITING_SQL,
    rest=ESCALATE,
)

# One probe of the index run_scheduled for each queue in which runs may start.
BY_AGE_SCHEDULED = f"""
WITH queue AS (
    SELECT * FROM unnest(%(queues)s::text[], %(lows)s::timestamptz[]) AS queue (name, low)),
chosen AS MATERIALIZED (
    SELECT old.id FROM queue, LATERAL (
        SELECT id FROM scheduling_run
         WHERE state = 'scheduled' AND queue = queue.name AND priority = %(from)s
           AND run_at >= COALESCE(queue.low, '-infinity')
           AND run_at <= statement_timestamp() - %(age)s::interval
         ORDER BY run_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED) old)
{ESCALATE}"""  # noqa: S608

# All queued runs are looked at: the windows bound their number.
BY_AGE_QUEUED = f"""
WITH chosen AS MATERIALIZED (
    SELECT id FROM scheduling_run
     WHERE state = 'queued' AND priority = %(from)s
       AND queued_at >= COALESCE(%(queued)s::timestamptz, '-infinity')
       AND run_at <= statement_timestamp() - %(age)s::interval
     ORDER BY run_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED)
{ESCALATE}"""  # noqa: S608


class Escalated(NamedTuple):
    """A run with a higher priority; `run_at` is None if its time is still to come."""

    id: UUID
    task: str
    deadline: datetime | None
    queue: str
    run_at: datetime | None


def escalate_for_deadlines(
    limit: int = BATCH,
    *,
    passed: datetime | None = None,
    near: datetime | None = None,
    lanes: Lanes | None = None,
) -> int:
    """Escalate waiting runs: to front past their deadline, to high near it; return how many.

    Each passed deadline is logged. A run that a retry has lowered is escalated again.

    Args:
        passed: no deadline that has passed is earlier; `near`: no deadline that is near is earlier.
        lanes: is given the lanes in which the runs wait now.
    """
    late = _escalate(PASSED, Priority.FRONT, lanes, {"limit": limit, "low": passed})
    for run in late:
        event(logger, "deadline_passed", level=logging.WARNING, run=run.id, task=run.task,
              deadline=run.deadline and run.deadline.isoformat())  # fmt: skip
    parameters = {"near": settings.DEADLINE_NEAR, "limit": limit, "low": near}
    close = _escalate(NEAR, Priority.HIGH, lanes, parameters)
    if late or close:
        event(logger, "runs_raised", front=len(late), high=len(close), why="deadline")
    return len(late) + len(close)


def escalate_for_age(
    limit: int = AGED_BATCH, *, queued: datetime | None = None, lanes: Lanes | None = None
) -> int:
    """Escalate runs that have waited long since `run_at` by one step, never to front.

    A low run becomes medium after AGE_AFTER, and a medium run becomes high after twice that time.
    At most `limit` runs of each queue do at a time, the oldest first, and as many runs in Redis. So
    each run has its turn, and a large backlog of low runs does not become one of high runs.

    Args:
        queued: no run was queued earlier.
        lanes: the lanes with waiting runs, as far as a beat knows them.

    Returns:
        The number of escalated runs.
    """
    age: timedelta = settings.AGE_AFTER
    if age <= timedelta(0):
        return 0
    lanes = lanes or Lanes()
    due = lanes.look().due
    escalated = 0
    # The higher step first, so that no run goes up two steps at once.
    for step, to, after in (
        (Priority.MEDIUM, Priority.HIGH, 2 * age),
        (Priority.LOW, Priority.MEDIUM, age),
    ):
        queues = [(lane.queue, low) for lane, low in due.items() if lane.priority == step]
        names, lows = arrays(queues, 2)
        parameters = {"from": step, "age": after, "limit": limit, "queued": queued}
        parameters |= {"queues": names, "lows": lows}
        for statement in (BY_AGE_SCHEDULED, BY_AGE_QUEUED):
            escalated += len(_escalate(statement, to, lanes, parameters))
    if escalated:
        event(logger, "runs_raised", runs=escalated, why="age")
    return escalated


def age_every() -> timedelta:
    """Return the time between two looks for runs that have waited long."""
    return min(AGE_EVERY, max(settings.AGE_AFTER / 10, timedelta(seconds=1)))


def _escalate(
    statement: str, to: Priority, lanes: Lanes | None, parameters: Mapping[str, Any]
) -> list[Escalated]:
    with connection.cursor() as cursor:
        cursor.execute(statement, {**parameters, "to": to.value})
        escalated = [Escalated(*row) for row in cursor.fetchall()]
    for run in escalated:
        if lanes is not None and run.run_at is not None:
            lanes.add(Lane(run.queue, to), run.run_at)
    return escalated
