"""plan: from a schedule's rule to the next instant at which it is due.

Beat calls `plan_changed` for the schedules that a trigger marked: new ones, and those whose next
instant an edit may have moved. The next instant counts from the moment of the edit, not from the
moment it is noticed, so that a beat that was away loses nothing.
"""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from hashlib import blake2b
from typing import Any, NamedTuple

from django.db import transaction

from scheduling import recurrence
from scheduling.logs import event
from scheduling.registry import decode_error
from scheduling.rules import RULE_COLUMNS, RULE_JOINS, RuleFields, build_rule, saturated
from scheduling.sql import arrays, lean_cursor

logger = logging.getLogger(__name__)

BATCH = 500
MOMENT = timedelta(microseconds=1)  # rules yield what is strictly after an instant

# A frozen beat must let go of its rows: Postgres ends its transaction. And a batch looks its few
# rows up, however large the tables are: left alone, Postgres reads tables of 10,000 rows whole,
# three times for each batch (docs/benchmarks.md).
BATCH_SETTINGS = """
SET LOCAL idle_in_transaction_session_timeout = '10s'; SET LOCAL lock_timeout = '2s';
SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL enable_seqscan = off
"""

# What is due already at the time of the edit is for `fire`, with the rule that made it due.
LOCK_CHANGED = """
SELECT schedule_id FROM scheduling_plan
 WHERE needs_plan AND (next_due_at IS NULL OR next_due_at > plan_from)
 LIMIT %s FOR NO KEY UPDATE SKIP LOCKED
"""

# Read after the locks are held: an edit that is committed before them is seen, a later one waits
# in its trigger and marks the plan again.
READ_CHANGED = f"""
SELECT p.schedule_id, p.plan_from, p.anchor_at, p.last_due_at, p.rule, p.done,
    t.enabled, t.task, COALESCE(NULLIF(t.args, ''), '[]'), COALESCE(NULLIF(t.kwargs, ''), '{{}}'),
    {saturated("y.paused_at")}, {saturated("y.paused_until")}, {RULE_COLUMNS}
  FROM scheduling_plan p
  JOIN django_celery_beat_periodictask t ON t.id = p.schedule_id
  LEFT JOIN scheduling_policy y ON y.schedule_id = p.schedule_id
  {RULE_JOINS}
 WHERE p.schedule_id = ANY(%s)
"""  # noqa: S608 (constants only)

WRITE_PLANS = """
UPDATE scheduling_plan p SET needs_plan = false, next_due_at = n.next_due_at,
    anchor_at = n.anchor_at, rule = n.rule, rule_version = %s, error = n.error
  FROM unnest(%s::integer[], %s::timestamptz[], %s::timestamptz[], %s::text[], %s::text[])
    AS n (schedule_id, next_due_at, anchor_at, rule, error)
 WHERE p.schedule_id = n.schedule_id
"""


class Changed(NamedTuple):
    """A plan to be made, with what its schedule says; in READ_CHANGED's order."""

    schedule_id: int
    plan_from: datetime
    anchor_at: datetime | None
    last_due_at: datetime | None
    rule: str
    done: bool
    enabled: bool
    task: str
    args: str
    kwargs: str
    paused_at: datetime | None
    paused_until: datetime | None
    fields: RuleFields


class Planned(NamedTuple):
    """A plan that was made; in WRITE_PLANS' order."""

    schedule_id: int
    next_due_at: datetime | None
    anchor_at: datetime | None
    rule: str
    error: str


def plan_changed(limit: int = BATCH) -> int:
    """Plan up to `limit` schedules that need it; return how many there were.

    A rule that cannot be evaluated, or arguments that cannot be read, put that one plan in
    quarantine (`error`, until its schedule is edited), never the batch.
    """
    with transaction.atomic(), lean_cursor() as cursor:
        cursor.execute(BATCH_SETTINGS)
        cursor.execute(LOCK_CHANGED, [limit])
        ids = [row[0] for row in cursor.fetchall()]
        if not ids:
            return 0
        cursor.execute(READ_CHANGED, [ids])
        planned = [plan(as_changed(row)) for row in cursor.fetchall()]
        cursor.execute(WRITE_PLANS, [rule_version(), *arrays(planned, len(Planned._fields))])
    _tell(planned)
    return len(ids)


def as_changed(row: Sequence[Any]) -> Changed:
    """Return a row of READ_CHANGED."""
    return Changed._make((*row[:12], RuleFields._make(row[12:])))


def plan(schedule: Changed) -> Planned:
    """Return a changed schedule's plan: its next instant after the edit, or why there is none."""
    fingerprint = schedule.fields.fingerprint()
    anchor = schedule.anchor_at
    if schedule.fields.is_interval and (anchor is None or fingerprint != schedule.rule):
        anchor = schedule.fields.start_time or schedule.plan_from
    try:
        due = _next_due(schedule, anchor, fingerprint)
        error = decode_error(schedule.args, schedule.kwargs) if due else ""
    except Exception as problem:  # whatever one rule does, it must not stop the others
        due, error = None, f"{type(problem).__name__}: {problem}"
    return Planned(schedule.schedule_id, None if error else due, anchor, fingerprint, error)


def _next_due(schedule: Changed, anchor: datetime | None, fingerprint: str) -> datetime | None:
    if not schedule.enabled or schedule.done or (schedule.paused_at and not schedule.paused_until):
        return None
    rule = build_rule(schedule.fields, anchor)
    after = max(filter(None, (schedule.plan_from, schedule.last_due_at)))
    clocked = schedule.fields.clocked_time
    if clocked is not None and fingerprint != schedule.rule and clocked != schedule.last_due_at:
        # A time that was set just now stands even if it has passed: then catch-up decides.
        after = min(after, clocked - MOMENT)
    if schedule.paused_at and schedule.paused_until:
        after = max(after, schedule.paused_until - MOMENT)
    due = recurrence.next_after(rule, after)
    if due is None and schedule.fields.expires is None and clocked is None:
        raise recurrence.NeverFires(f"{recurrence.describe(rule)!r} never fires: change the rule.")
    return due


def _tell(planned: Sequence[Planned]) -> None:
    quarantined = [plan for plan in planned if plan.error]
    event(logger, "plans_made", plans=len(planned), quarantined=len(quarantined))
    for plan in quarantined:
        event(logger, "schedule_quarantined", level=logging.ERROR,
              schedule=plan.schedule_id, error=plan.error)  # fmt: skip


@cache
def rule_version() -> str:
    """Return what computes instants here: the rule engine's version and the time zone data's."""
    return f"{recurrence.VERSION}/{recurrence.tzdata_version()}"


def spread_offset(schedule_id: int, spread: timedelta) -> timedelta:
    """Return how much later than due this schedule starts: fixed for its id, below `spread`."""
    digest = blake2b(str(schedule_id).encode(), digest_size=8).digest()
    return spread * (int.from_bytes(digest) / 2**64)
