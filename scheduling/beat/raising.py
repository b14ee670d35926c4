"""raise: waiting runs go up when their deadline comes near, and when they have waited long.

Only the ledger is written. A run whose hint lies in Redis becomes scheduled again, and `publish`
sends a second hint to its new lane, in its order there and as far as that lane has room. The first
hint stays where it is: whichever comes first starts the run, and the other is refused like any
second one. Until a worker has come to it, it takes room in its old lane's window, no more.
"""

import logging
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import connection

from scheduling.logs import event
from scheduling.models import WAITING_SQL, Priority

logger = logging.getLogger(__name__)

BATCH = 500
AGED_BATCH = 100  # see `raise_for_age`
AGE_EVERY = timedelta(seconds=10)  # between looks for old ones, at most

RAISE = f"""
UPDATE scheduling_run r SET priority = %(to)s, queued_at = NULL,
    given_priority = COALESCE(r.given_priority, r.priority),
    state = CASE r.state WHEN 'queued' THEN 'scheduled' ELSE r.state END
 WHERE r.id = ANY (ARRAY(SELECT id FROM chosen)) AND r.state IN ({WAITING_SQL})
RETURNING r.id, r.task, r.deadline
"""  # noqa: S608 (constants only)

# Each has an index of its own, which does not hold what has been raised already.
BY_DEADLINE = """
WITH chosen AS MATERIALIZED (
    SELECT id FROM scheduling_run
     WHERE {which} AND state IN ({waiting})
     ORDER BY deadline LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED)
{rest}"""
PASSED = BY_DEADLINE.format(
    which="deadline <= statement_timestamp() AND priority > 0", waiting=WAITING_SQL, rest=RAISE
)
NEAR = BY_DEADLINE.format(
    which="""deadline > statement_timestamp()
       AND deadline <= statement_timestamp() + %(near)s::interval AND priority > 3""",
    waiting=WAITING_SQL,
    rest=RAISE,
)

# One probe of run_scheduled for each queue.
BY_AGE_SCHEDULED = f"""
WITH RECURSIVE queue AS (
    (SELECT queue AS name FROM scheduling_run WHERE state = 'scheduled' ORDER BY queue LIMIT 1)
  UNION ALL
    SELECT next.queue FROM queue, LATERAL (
        SELECT queue FROM scheduling_run WHERE state = 'scheduled' AND queue > queue.name
         ORDER BY queue LIMIT 1) next),
chosen AS MATERIALIZED (
    SELECT old.id FROM queue, LATERAL (
        SELECT id FROM scheduling_run
         WHERE state = 'scheduled' AND queue = queue.name AND priority = %(from)s
           AND run_at <= statement_timestamp() - %(age)s::interval
         ORDER BY run_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED) old)
{RAISE}"""  # noqa: S608

# Of what lies in Redis, all is looked at: it is bounded by the windows.
BY_AGE_QUEUED = f"""
WITH chosen AS MATERIALIZED (
    SELECT id FROM scheduling_run
     WHERE state = 'queued' AND priority = %(from)s
       AND run_at <= statement_timestamp() - %(age)s::interval
     ORDER BY run_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED)
{RAISE}"""  # noqa: S608


def raise_for_deadlines(limit: int = BATCH) -> int:
    """Raise waiting runs: to the front past their deadline, to high near it; return how many.

    Where the deadline has passed, each is told of. What a retry has lowered is raised again.
    """
    passed = _raise(PASSED, Priority.FRONT, {"limit": limit})
    for run_id, task, deadline in passed:
        event(logger, "deadline_passed", level=logging.WARNING, run=run_id, task=task,
              deadline=deadline.isoformat())  # fmt: skip
    near = _raise(NEAR, Priority.HIGH, {"near": settings.DEADLINE_NEAR, "limit": limit})
    if passed or near:
        event(logger, "runs_raised", front=len(passed), high=len(near), why="deadline")
    return len(passed) + len(near)


def raise_for_age(limit: int = AGED_BATCH) -> int:
    """Raise runs that have waited long since `run_at` by one step, never to the front.

    What is low becomes medium after AGE_AFTER, what is medium becomes high after twice that. Only
    the `limit` oldest of each queue do at a time, and of what lies in Redis: enough that each has
    its turn, too few for a great backlog of low ones to become a backlog of high ones.

    Returns:
        How many were raised.
    """
    age: timedelta = settings.AGE_AFTER
    if age <= timedelta(0):
        return 0
    raised = 0
    # The higher step first, so that none goes up two at once.
    for step, to, after in (
        (Priority.MEDIUM, Priority.HIGH, 2 * age),
        (Priority.LOW, Priority.MEDIUM, age),
    ):
        for statement in (BY_AGE_SCHEDULED, BY_AGE_QUEUED):
            raised += len(_raise(statement, to, {"from": step, "age": after, "limit": limit}))
    if raised:
        event(logger, "runs_raised", runs=raised, why="age")
    return raised


def age_every() -> timedelta:
    """Return how often to look for runs that have waited long."""
    return min(AGE_EVERY, max(settings.AGE_AFTER / 10, timedelta(seconds=1)))


def _raise(statement: str, to: Priority, parameters: dict[str, Any]) -> list[tuple[UUID, str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, {**parameters, "to": to.value})
        raised: list[tuple[UUID, str, Any]] = cursor.fetchall()
    return raised
