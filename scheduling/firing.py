"""fire: occurrences that are due become runs, and their plans move on, in one transaction.

Which runs, the policies say: `decide` takes a due plan and the clock and returns rows to write,
without touching the database.
"""

import logging
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from django.db import transaction
from kombu.utils.json import dumps, loads

from scheduling import recurrence
from scheduling.finishing import cancel_waiting_of
from scheduling.ids import uuid7
from scheduling.logs import event
from scheduling.models import CatchUp, Overlap, Priority, Run, State
from scheduling.planning import LIMIT_TRANSACTION, spread_offset
from scheduling.registry import decode_error, queue_of
from scheduling.rules import RULE_COLUMNS, RULE_JOINS, RuleFields, build_rule
from scheduling.sql import arrays, lean_cursor

logger = logging.getLogger(__name__)

BATCH = 500
GRACE = timedelta(minutes=1)  # what `none` still counts as in time, unless the policy says
CATCH_UP_STEP = 200  # instants that `all` makes runs of, per plan and tick
CATCH_UP_MAX = 1000  # unfinished runs beyond which `all` skips the rest

# `low` spares the dead entries that an old snapshot keeps at the index's beginning.
LOCK_DUE = f"""
WITH due AS MATERIALIZED (
    SELECT * FROM scheduling_plan
     WHERE next_due_at <= statement_timestamp() AND next_due_at > %(low)s
     ORDER BY next_due_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED)
SELECT statement_timestamp(), p.schedule_id, p.next_due_at, p.needs_plan, p.plan_from,
    p.last_due_at, p.anchor_at, t.one_off, t.task,
    COALESCE(NULLIF(t.args, ''), '[]'), COALESCE(NULLIF(t.kwargs, ''), '{{}}'),
    COALESCE(t.headers, ''), t.queue, t.priority,
    COALESCE(y.catch_up, 'latest'), y.catch_up_window, COALESCE(y.overlap, 'allow'),
    COALESCE(y.spread, interval '0'), {RULE_COLUMNS}
  FROM due p
  JOIN django_celery_beat_periodictask t ON t.id = p.schedule_id
  LEFT JOIN scheduling_policy y ON y.schedule_id = p.schedule_id
  {RULE_JOINS}
"""  # noqa: S608 (constants only)

WRITE = """
WITH fired AS (
    INSERT INTO scheduling_run
        (id, schedule_id, schedule_name, origin, task, args, kwargs, options, queue, priority,
         due_at, run_at, deadline, expires_at, state, reason, finished_at, coalesced, max_attempts)
    SELECT r.id, t.id, t.name, 'schedule', t.task, COALESCE(NULLIF(t.args, ''), '[]'),
        COALESCE(NULLIF(t.kwargs, ''), '{}'), r.options, r.queue, r.priority, r.due_at, r.run_at,
        r.due_at + y.deadline_after,
        LEAST(t.expires, r.run_at + make_interval(secs => t.expire_seconds)),
        r.state, r.reason, CASE WHEN r.state = 'skipped' THEN statement_timestamp() END,
        r.coalesced, y.max_attempts
      FROM unnest(%s::uuid[], %s::integer[], %s::timestamptz[], %s::timestamptz[], %s::text[],
                  %s::text[], %s::integer[], %s::text[], %s::smallint[], %s::text[])
        AS r (id, schedule_id, due_at, run_at, state, reason, coalesced, queue, priority, options)
      JOIN django_celery_beat_periodictask t ON t.id = r.schedule_id
      LEFT JOIN scheduling_policy y ON y.schedule_id = t.id
    ON CONFLICT (schedule_id, due_at) WHERE origin = 'schedule' DO NOTHING)
UPDATE scheduling_plan p SET next_due_at = n.next_due_at, last_due_at = n.last_due_at,
    fired_count = p.fired_count + n.fired, error = n.error
  FROM unnest(%s::integer[], %s::timestamptz[], %s::timestamptz[], %s::integer[], %s::text[])
    AS n (schedule_id, next_due_at, last_due_at, fired, error)
 WHERE p.schedule_id = n.schedule_id
"""

UNFINISHED_OF = """
SELECT schedule_id, count(*) FILTER (WHERE state = 'running'),
    count(*) FILTER (WHERE state = 'held'), count(*)
  FROM scheduling_run
 WHERE schedule_id = ANY(%s) AND state IN ('scheduled', 'held', 'queued', 'running')
 GROUP BY schedule_id
"""


class Due(NamedTuple):
    """A plan whose instant has come, with what its schedule says; in LOCK_DUE's order."""

    now: datetime
    schedule_id: int
    next_due_at: datetime
    needs_plan: bool
    plan_from: datetime
    last_due_at: datetime | None
    anchor_at: datetime | None
    one_off: bool
    task: str
    args: str
    kwargs: str
    headers: str
    queue: str | None
    priority: int | None
    catch_up: str
    catch_up_window: timedelta | None
    overlap: str
    spread: timedelta
    fields: RuleFields


class Unfinished(NamedTuple):
    """How many runs of a schedule are not final yet."""

    running: int = 0
    held: int = 0
    all: int = 0


class NewRun(NamedTuple):
    """One row to write; in WRITE's order."""

    id: UUID
    schedule_id: int
    due_at: datetime
    run_at: datetime
    state: str
    reason: str
    coalesced: int
    queue: str
    priority: int
    options: str


class Moved(NamedTuple):
    """Where a plan stands afterwards; in WRITE's order."""

    schedule_id: int
    next_due_at: datetime | None
    last_due_at: datetime | None
    fired: int
    error: str = ""


class Fired(NamedTuple):
    """What one `fire_due` did: plans it looked at, and the schedules whose last run moved."""

    plans: int
    schedule_ids: Sequence[int]
    one_off_ids: Sequence[int]


def fire_due(low: datetime, limit: int = BATCH) -> Fired:
    """Make runs of up to `limit` due plans whose instant is after `low`; move these plans on."""
    with transaction.atomic(), lean_cursor() as cursor:
        cursor.execute(LIMIT_TRANSACTION)
        cursor.execute(LOCK_DUE, {"low": low, "limit": limit})
        due = [Due._make((*row[:18], RuleFields._make(row[18:]))) for row in cursor.fetchall()]
        if not due:
            return Fired(0, (), ())
        unfinished = _unfinished_of(due)
        runs: list[NewRun] = []
        moved: list[Moved] = []
        for plan in due:
            there = unfinished.get(plan.schedule_id, Unfinished())
            new, move = decide(plan, there)
            if new and there.all and plan.overlap == Overlap.REPLACE:
                _cancel_unfinished(plan)
            runs += new
            moved.append(move)
        columns = arrays(runs, len(NewRun._fields)) + arrays(moved, len(Moved._fields))
        cursor.execute(WRITE, columns)
    _tell(runs)
    one_offs = [plan.schedule_id for plan in due if plan.one_off]
    return Fired(len(due), [move.schedule_id for move in moved if move.fired], one_offs)


def decide(plan: Due, unfinished: Unfinished) -> tuple[list[NewRun], Moved]:
    """Return the runs that a due plan becomes, and where the plan stands then.

    An instant that an edit has replaced before it came due becomes nothing: the schedule is planned
    anew. One that was due before the edit is fired as it was planned.
    """
    if plan.needs_plan and plan.next_due_at > plan.plan_from:
        return [], Moved(plan.schedule_id, None, plan.last_due_at, 0)
    if problem := decode_error(plan.args, plan.kwargs):
        return [_run(plan, plan.next_due_at, State.SKIPPED, problem)], _quarantined(plan, problem)
    try:
        runs, next_due, last_due = _catch_up(plan, unfinished)
        error = ""
    except Exception as exception:  # whatever one rule does, it must not stop the others
        error = f"{type(exception).__name__}: {exception}"
        runs, next_due, last_due = [_run(plan, plan.next_due_at)], None, plan.next_due_at
    runs = _without_overlap(plan, unfinished, runs)
    return runs, Moved(plan.schedule_id, next_due, last_due, len(runs), error)


def _catch_up(plan: Due, unfinished: Unfinished) -> tuple[list[NewRun], datetime | None, datetime]:
    """Return the runs for what is due, the next instant, and the last one that was dealt with."""
    due, now = plan.next_due_at, plan.now
    if plan.needs_plan or plan.one_off:
        return [_run(plan, due)], None, due
    rule = build_rule(plan.fields, plan.anchor_at)
    following = recurrence.next_after(rule, due)
    if plan.catch_up == CatchUp.NONE:
        return _skip_late(plan, rule, following)
    if following is None or following > now:
        return [_run(plan, due)], following, due
    if plan.catch_up == CatchUp.ALL:
        return _one_for_each(plan, rule, unfinished)
    latest = recurrence.latest_between(rule, due, now) or due
    missed = recurrence.count_between(rule, due, latest)
    return [_run(plan, due, coalesced=missed)], recurrence.next_after(rule, latest), latest


def _skip_late(
    plan: Due, rule: recurrence.Rule, following: datetime | None
) -> tuple[list[NewRun], datetime | None, datetime]:
    due, now = plan.next_due_at, plan.now
    in_time = now - (GRACE if plan.catch_up_window is None else plan.catch_up_window)
    if due >= in_time:
        return [_run(plan, due)], following, due
    # The rest that is late too is counted on this row; what is still in time comes next.
    missed = recurrence.count_between(rule, due, in_time)
    last = recurrence.latest_between(rule, due, in_time) or due
    reason = f"missed: noticed {now - due} after it was due"
    skipped = _run(plan, due, State.SKIPPED, reason, coalesced=missed)
    return [skipped], recurrence.next_after(rule, last), last


def _one_for_each(
    plan: Due, rule: recurrence.Rule, unfinished: Unfinished
) -> tuple[list[NewRun], datetime | None, datetime]:
    due, now = plan.next_due_at, plan.now
    oldest = now - plan.catch_up_window if plan.catch_up_window is not None else due
    if due < oldest:
        reason, last = "missed: before the catch-up window", oldest
    elif unfinished.all >= CATCH_UP_MAX:
        reason, last = f"missed: {unfinished.all} runs of this schedule wait already", now
    else:
        runs = [_run(plan, due)]
        for instant in recurrence.occurrences_between(rule, due, now):
            if len(runs) == CATCH_UP_STEP:
                break
            runs.append(_run(plan, instant))
        last = runs[-1].due_at
        return _one_at_a_time(runs, unfinished), recurrence.next_after(rule, last), last
    missed = recurrence.count_between(rule, due, last)
    last = recurrence.latest_between(rule, due, last) or due
    skipped = _run(plan, due, State.SKIPPED, reason, coalesced=missed)
    return [skipped], recurrence.next_after(rule, last), last


def _one_at_a_time(runs: list[NewRun], unfinished: Unfinished) -> list[NewRun]:
    first = [] if unfinished.all else runs[:1]
    return first + [run._replace(state=State.HELD) for run in runs[len(first) :]]


def _without_overlap(plan: Due, unfinished: Unfinished, runs: list[NewRun]) -> list[NewRun]:
    """Return the runs as the overlap policy lets them start."""
    if plan.overlap == Overlap.ALLOW or not unfinished.all:
        return runs
    starting = [run for run in runs if run.state == State.SCHEDULED]
    if not starting:
        return runs
    if plan.overlap == Overlap.REPLACE:
        state, reason = (State.HELD, "") if unfinished.running else (State.SCHEDULED, "")
    elif plan.overlap == Overlap.QUEUE and not unfinished.held:
        state, reason = State.HELD, ""
    elif plan.overlap == Overlap.QUEUE:
        state, reason = State.SKIPPED, "overlap: one run waits already for an unfinished one"
    else:
        state, reason = State.SKIPPED, "overlap: an earlier run is unfinished"
    return [
        run._replace(state=state, reason=reason) if run.state == State.SCHEDULED else run
        for run in runs
    ]


def _cancel_unfinished(plan: Due) -> None:
    by = f"schedule {plan.schedule_id}: replaced by the run due {plan.next_due_at.isoformat()}"
    cancel_waiting_of(plan.schedule_id, reason=f"overlap: {by}")
    Run.objects.filter(schedule_id=plan.schedule_id, state=State.RUNNING).update(
        cancel_requested_by=by[:150]
    )


def _run(
    plan: Due, due: datetime, state: State = State.SCHEDULED, reason: str = "", coalesced: int = 0
) -> NewRun:
    offset = spread_offset(plan.schedule_id, plan.spread) if plan.spread else timedelta(0)
    return NewRun(
        uuid7(), plan.schedule_id, due, due + offset, state, reason, coalesced,
        queue_of(plan.task, plan.queue or None), Priority.nearest(plan.priority),
        _options(plan.headers),
    )  # fmt: skip


def _options(headers: str) -> str:
    """Return a run's options: the schedule's message headers, where it has any."""
    if headers in ("", "{}"):
        return "{}"
    try:
        return str(dumps({"headers": dict(loads(headers))}))
    except (TypeError, ValueError):
        return "{}"


def _quarantined(plan: Due, problem: str) -> Moved:
    return Moved(plan.schedule_id, None, plan.next_due_at, 1, problem)


def _unfinished_of(due: Iterable[Due]) -> dict[int, Unfinished]:
    asking = [
        plan.schedule_id
        for plan in due
        if plan.overlap != Overlap.ALLOW or plan.catch_up == CatchUp.ALL
    ]
    if not asking:
        return {}
    with lean_cursor() as cursor:
        cursor.execute(UNFINISHED_OF, [asking])
        return {row[0]: Unfinished(*row[1:]) for row in cursor.fetchall()}


def _tell(runs: Sequence[NewRun]) -> None:
    if runs:
        event(logger, "runs_fired", runs=len(runs), first_due=min(run.due_at for run in runs))
    for run in runs:
        if run.state == State.SKIPPED:
            event(logger, "run_skipped", run=run.id, schedule=run.schedule_id, reason=run.reason)


COPY_LAST_RUNS = """
WITH free AS MATERIALIZED (
    SELECT id FROM django_celery_beat_periodictask WHERE id = ANY(%s)
     ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)
UPDATE django_celery_beat_periodictask t SET last_run_at = p.last_due_at,
    total_run_count = LEAST(p.fired_count, 2147483647),
    enabled = t.enabled AND NOT (t.one_off AND p.next_due_at IS NULL AND NOT p.needs_plan)
  FROM free JOIN scheduling_plan p ON p.schedule_id = free.id
 WHERE t.id = free.id AND p.fired_count > 0
"""


def copy_last_runs(schedule_ids: Iterable[int]) -> None:
    """Copy to PeriodicTask what its own page shows: last run, count, and that a one-off is done.

    Apart from `fire_due`: rows that a user holds are left for another time.
    """
    with lean_cursor() as cursor:
        cursor.execute(COPY_LAST_RUNS, [list(schedule_ids)])
