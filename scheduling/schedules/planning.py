"""plan: computes the next due instant of a schedule from its rule.

Beat calls `plan_changed` for the schedules that a trigger marked: new ones, and those whose next
instant an edit may have moved. The next instant counts from the moment of the edit, not from the
moment it is noticed, so that a beat that was away loses nothing.
"""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import blake2b
from typing import Any, NamedTuple

from django.db import connection, transaction

from scheduling import recurrence
from scheduling.logs import event
from scheduling.postgres.infinity import saturated
from scheduling.postgres.sql import arrays, lean_cursor
from scheduling.registry import decode_error
from scheduling.schedules.rules import (
    RULE_COLUMNS,
    RULE_JOINS,
    RuleFields,
    build_rule,
    same_rule,
    with_fields,
)

logger = logging.getLogger(__name__)

BATCH = 500
MOMENT = timedelta(microseconds=1)  # rules yield instants strictly after a given one
BEFORE_ALL = datetime(1, 1, 3, tzinfo=UTC)

# A frozen beat must release its rows: Postgres ends its transaction. A batch looks up its few rows
# by index, in tables of any size: else Postgres reads tables of 10,000 rows whole, three times
# for each batch (docs/benchmarks.md). So one plan is good for all parameters, and a prepared
# statement is not planned again for each.
BATCH_SETTINGS = """
SET LOCAL idle_in_transaction_session_timeout = '10s'; SET LOCAL lock_timeout = '2s';
SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL enable_seqscan = off;
SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off;
SET LOCAL plan_cache_mode = force_generic_plan
"""

# A plan that is due already at the time of the edit is left to `fire`, with its old rule.
LOCK_CHANGED = """
SELECT schedule_id FROM scheduling_plan
 WHERE needs_plan AND (next_due_at IS NULL OR next_due_at > plan_from)
   AND plan_from >= COALESCE(%s::timestamptz, '-infinity')
 ORDER BY plan_from LIMIT %s FOR NO KEY UPDATE SKIP LOCKED
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
    anchor_at = n.anchor_at, rule = n.rule, rule_version = n.rule_version, error = n.error
  FROM unnest(%s::integer[], %s::timestamptz[], %s::timestamptz[], %s::text[], %s::text[],
              %s::text[]) AS n (schedule_id, next_due_at, anchor_at, rule, rule_version, error)
 WHERE p.schedule_id = n.schedule_id
"""


# A schedule that was deleted without its foreign keys (`reconciling`) leaves a plan that is never
# made: every tick would look for it. LOCK_CHANGED has locked it.
REMOVE_ORPHANS = """
DELETE FROM scheduling_plan p WHERE schedule_id = ANY(%s)
   AND NOT EXISTS (SELECT 1 FROM django_celery_beat_periodictask t WHERE t.id = p.schedule_id)
"""

# A due orphan takes a place in each batch of beat.
REMOVE_DUE_ORPHANS = """
DELETE FROM scheduling_plan WHERE schedule_id = ANY (ARRAY(
    SELECT schedule_id FROM scheduling_plan p
     WHERE next_due_at <= statement_timestamp()
       AND NOT EXISTS (SELECT 1 FROM django_celery_beat_periodictask t WHERE t.id = p.schedule_id)
     ORDER BY next_due_at LIMIT %s FOR UPDATE SKIP LOCKED))
"""


class Changed(NamedTuple):
    """A plan to be made, with columns of its schedule, in READ_CHANGED's order."""

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
    rule_version: str
    error: str


class Plans(NamedTuple):
    """Plans that were made; `needed` is how many there were, those without a schedule included."""

    needed: int
    made: Sequence[Planned]


def plan_changed(limit: int = BATCH) -> int:
    """Plan up to `limit` schedules that need it; return how many there were."""
    return make_plans(limit).needed


def make_plans(limit: int = BATCH, low: datetime | None = None) -> Plans:
    """Plan up to `limit` schedules that need it since `low`, the first ones; return their plans.

    A rule that cannot be evaluated, or arguments that cannot be read, put that one plan in
    quarantine (`error`, until its schedule is edited), never the batch.
    """
    with transaction.atomic(), lean_cursor() as cursor:
        cursor.execute(BATCH_SETTINGS)
        cursor.execute(LOCK_CHANGED, [low, limit])
        ids = [row[0] for row in cursor.fetchall()]
        if not ids:
            return Plans(0, ())
        cursor.execute(READ_CHANGED, [ids])
        changed = all_changed(cursor.fetchall())
        planned = [plan(schedule) for schedule in changed]
        cursor.execute(WRITE_PLANS, arrays(planned, len(Planned._fields)))
        if len(planned) < len(ids):
            cursor.execute(REMOVE_ORPHANS, [ids])
    _tell(planned, [schedule.schedule_id for schedule in changed if schedule.fields.is_slowed])
    return Plans(len(ids), planned)


def remove_due_orphans(limit: int = BATCH) -> int:
    """Remove plans that are due and have no schedule; return how many."""
    with connection.cursor() as cursor:
        cursor.execute(REMOVE_DUE_ORPHANS, [limit])
        removed: int = cursor.rowcount
    if removed:
        event(logger, "orphans_removed", level=logging.WARNING, table="scheduling_plan",
              rows=removed)  # fmt: skip
    return removed


def all_changed(rows: Sequence[tuple[Any, ...]]) -> list[Changed]:
    """Return the rows of READ_CHANGED."""
    return with_fields(Changed, rows)


def plan(schedule: Changed) -> Planned:
    """Return a changed schedule's plan: its next instant after the edit, or the problem."""
    serialised = schedule.fields.serialised()
    anchor = schedule.anchor_at
    same = same_rule(serialised, schedule.rule)
    if schedule.fields.is_interval and (anchor is None or not same):
        anchor = schedule.fields.start_time or schedule.plan_from
    version = ""
    try:
        version = rule_version(schedule.fields)
        due = _next_due(schedule, anchor, same)
        error = decode_error(schedule.args, schedule.kwargs) if due else ""
    except Exception as problem:  # one rule must not stop the others
        due, error = None, f"{type(problem).__name__}: {problem}"
    next_due = None if error else due
    return Planned(schedule.schedule_id, next_due, anchor, serialised, version, error)


def _next_due(schedule: Changed, anchor: datetime | None, same: bool) -> datetime | None:
    if not schedule.enabled or schedule.done or (schedule.paused_at and not schedule.paused_until):
        return None
    rule = build_rule(schedule.fields, anchor)
    after = max(filter(None, (schedule.plan_from, schedule.last_due_at)))
    clocked = schedule.fields.clocked_time
    if clocked is not None and (not same or clocked > schedule.plan_from):
        # A time that was set just now counts even if it has passed, and so does a time that a
        # calendar has just moved into the past: then catch-up decides.
        only = recurrence.next_after(rule, BEFORE_ALL)
        if only is not None and only != schedule.last_due_at:
            after = min(after, only - MOMENT)
    if schedule.paused_at and schedule.paused_until:
        after = max(after, schedule.paused_until - MOMENT)
    due = recurrence.next_after(rule, after)
    if due is None and schedule.fields.expires is None and clocked is None:
        raise recurrence.NeverFires(f"{recurrence.describe(rule)!r} never fires: change the rule.")
    return due


def _tell(planned: Sequence[Planned], slowed: Sequence[int]) -> None:
    quarantined = [plan for plan in planned if plan.error]
    event(logger, "plans_made", plans=len(planned), quarantined=len(quarantined))
    if slowed:
        event(logger, "intervals_slowed", level=logging.WARNING, plans=len(slowed),
              schedules=", ".join(map(str, slowed[:20])))  # fmt: skip
    for plan in quarantined:
        event(logger, "schedule_quarantined", level=logging.ERROR,
              schedule=plan.schedule_id, error=plan.error)  # fmt: skip


def rule_version(fields: RuleFields | None = None) -> str:
    """Return the versions of the rule engine and of its data, which compute instants.

    The data are those of time zones and, for a rule with a calendar, of public holidays.
    """
    if fields is None or fields.days_off is None or not fields.days_off.country:
        return _engine()
    return f"{_engine()}/holidays {recurrence.holidays_version()}"


def rule_versions() -> list[str]:
    """Return the present `rule_version` of rules, without and with public holidays."""
    try:
        return [_engine(), f"{_engine()}/holidays {recurrence.holidays_version()}"]
    except recurrence.MissingDependency:
        return [_engine()]


@cache
def _engine() -> str:
    return f"{recurrence.VERSION}/{recurrence.tzdata_version()}"


def spread_offset(schedule_id: int, spread: timedelta) -> timedelta:
    """Return how much later than due this schedule starts: fixed for its id, below `spread`."""
    digest = blake2b(str(schedule_id).encode(), digest_size=8).digest()
    return spread * (int.from_bytes(digest) / 2**64)
