"""fire: occurrences that are due become runs, and their plans move on, in one transaction.

Which runs, `deciding` says, by the policies.
"""

import logging
from collections.abc import Iterable, MutableMapping, Sequence
from datetime import datetime
from typing import NamedTuple

from django.db import transaction
from django.db.models.functions import Coalesce, Now

from scheduling.deciding import Due, Moved, NewRun, Unfinished, decide, hold
from scheduling.hints import Hint, Lane
from scheduling.logs import event
from scheduling.models import UNFINISHED, CatchUp, Overlap, Run, State
from scheduling.planning import BATCH_SETTINGS
from scheduling.rules import RULE_COLUMNS, RULE_JOINS, with_fields
from scheduling.sql import arrays, lean_cursor
from scheduling.waiting import cancel_waiting_of

logger = logging.getLogger(__name__)

BATCH = 500
STATE = NewRun._fields.index("state")
NONE_LEFT = Unfinished()


def bounded(column: str) -> str:
    """Return SQL for an interval that Python can hold: up to a million days; NULL stays NULL."""
    limit = "interval '1000000 days'"
    return f"CASE WHEN {column} > {limit} THEN {limit} ELSE {column} END"


# `low` spares the dead entries that an old snapshot keeps at the index's beginning.
LOCK_DUE = f"""
WITH due AS MATERIALIZED (
    SELECT * FROM scheduling_plan
     WHERE next_due_at <= statement_timestamp() AND next_due_at > %(low)s
     ORDER BY next_due_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED)
SELECT statement_timestamp(), p.schedule_id, p.next_due_at, p.needs_plan, p.last_due_at,
    p.anchor_at, t.one_off, t.task,
    COALESCE(NULLIF(t.args, ''), '[]'), COALESCE(NULLIF(t.kwargs, ''), '{{}}'),
    COALESCE(t.headers, ''), t.queue, t.priority,
    COALESCE(y.catch_up, 'latest'), {bounded("y.catch_up_window")}, COALESCE(y.overlap, 'allow'),
    COALESCE({bounded("y.spread")}, interval '0'), {bounded("y.deadline_after")}, t.expire_seconds,
    CASE WHEN p.needs_plan THEN p.rule ELSE '' END, LEAST(p.replaced_at, p.plan_from),
    {RULE_COLUMNS}
  FROM due p
  JOIN django_celery_beat_periodictask t ON t.id = p.schedule_id
  LEFT JOIN scheduling_policy y ON y.schedule_id = p.schedule_id
  {RULE_JOINS}
"""  # noqa: S608 (constants only)

WRITE = """
WITH fired AS (
    INSERT INTO scheduling_run
        (id, schedule_id, schedule_name, origin, task, args, kwargs, options, queue, priority,
         due_at, run_at, deadline, expires_at, state, reason, queued_at, finished_at, coalesced,
         max_attempts)
    SELECT r.id, t.id, t.name, 'schedule', t.task, COALESCE(NULLIF(t.args, ''), '[]'),
        COALESCE(NULLIF(t.kwargs, ''), '{}'), r.options, r.queue, r.priority, r.due_at, r.run_at,
        r.deadline, r.expires_at, r.state, r.reason,
        CASE WHEN r.state = 'queued' THEN clock_timestamp() END,
        CASE WHEN r.state = 'skipped' THEN statement_timestamp() END,
        r.coalesced, y.max_attempts
      FROM unnest(%s::uuid[], %s::integer[], %s::timestamptz[], %s::timestamptz[], %s::text[],
                  %s::text[], %s::integer[], %s::text[], %s::smallint[], %s::text[],
                  %s::timestamptz[], %s::timestamptz[])
        AS r (id, schedule_id, due_at, run_at, state, reason, coalesced, queue, priority, options,
              deadline, expires_at)
      JOIN django_celery_beat_periodictask t ON t.id = r.schedule_id
      LEFT JOIN scheduling_policy y ON y.schedule_id = t.id
    ON CONFLICT (schedule_id, due_at) WHERE origin = 'schedule' DO NOTHING)
UPDATE scheduling_plan p SET next_due_at = n.next_due_at, last_due_at = n.last_due_at,
    fired_count = p.fired_count + n.fired, error = n.error, done = p.done OR n.done
  FROM unnest(%s::integer[], %s::timestamptz[], %s::timestamptz[], %s::integer[], %s::text[],
              %s::boolean[]) AS n (schedule_id, next_due_at, last_due_at, fired, error, done)
 WHERE p.schedule_id = n.schedule_id
"""

# The runs of a backfill are apart from their schedule's own: neither waits for the other.
UNFINISHED_OF = """
SELECT schedule_id, count(*) FILTER (WHERE state = 'running'),
    count(*) FILTER (WHERE state = 'held'), count(*)
  FROM scheduling_run
 WHERE schedule_id = ANY(%s) AND backfill_id IS NULL
   AND state IN ('scheduled', 'held', 'queued', 'running')
 GROUP BY schedule_id
"""


class Fired(NamedTuple):
    """What one `fire_due` did: plans it looked at, and the schedules whose last run moved.

    `hints` are of the runs that are queued already, and have to be pushed now. `behind`: one of the
    plans is due again already.
    """

    plans: int
    schedule_ids: Sequence[int]
    one_off_ids: Sequence[int]
    hints: Sequence[Hint] = ()
    behind: bool = False


def fire_due(
    low: datetime, limit: int = BATCH, room: MutableMapping[Lane, int] | None = None
) -> Fired:
    """Make runs of up to `limit` due plans whose instant is after `low`; move these plans on.

    A run that may start now is written as queued where its lane is in `room`, which says how many
    hints a lane in which nothing waits can take, and is counted down here. It saves the run its
    second version: `publish` would queue it a moment later.
    """
    room = {} if room is None else room
    hints: list[Hint] = []
    with transaction.atomic(), lean_cursor() as cursor:
        cursor.execute(BATCH_SETTINGS)
        cursor.execute(LOCK_DUE, {"low": low, "limit": limit})
        due = with_fields(Due, cursor.fetchall())
        if not due:
            return Fired(0, (), ())
        unfinished = _unfinished_of(due)
        runs: list[NewRun] = []
        moved: list[Moved] = []
        for plan in due:
            there = unfinished.get(plan.schedule_id, NONE_LEFT)
            new, move = decide(plan, there)
            replacing = there.all and plan.overlap == Overlap.REPLACE and _runs_any(new)
            if replacing and _cancel_unfinished(plan):
                new = [hold(run) for run in new]
            new = [_queued(run, plan.now, room) for run in new]
            hints += [_hint(run, plan.task) for run in new if run.state == State.QUEUED]
            runs += new
            moved.append(move)
        columns = arrays(runs, len(NewRun._fields)) + arrays(moved, len(Moved._fields))
        cursor.execute(WRITE, columns)
    _tell(runs)
    one_offs = [plan.schedule_id for plan in due if plan.one_off]
    fired = [move.schedule_id for move in moved if move.fired]
    now = due[0].now
    behind = any(move.next_due_at is not None and move.next_due_at <= now for move in moved)
    return Fired(len(due), fired, one_offs, hints, behind)


def _queued(run: NewRun, now: datetime, room: MutableMapping[Lane, int]) -> NewRun:
    """Return the run as queued if it may start now and there is room for its hint."""
    if run.state != State.SCHEDULED or run.run_at > now:
        return run
    lane = Lane(run.queue, run.priority)
    left = room.get(lane, 0)
    if left <= 0 or (run.expires_at is not None and run.expires_at <= now):
        return run
    room[lane] = left - 1
    # A third of what _replace takes.
    return NewRun._make((*run[:STATE], State.QUEUED, *run[STATE + 1 :]))


def _hint(run: NewRun, task: str) -> Hint:
    return Hint(run.id, 1, task, run.queue, run.priority, run.options)


def _runs_any(runs: Iterable[NewRun]) -> bool:
    return any(run.state != State.SKIPPED for run in runs)


def _cancel_unfinished(plan: Due) -> bool:
    """Cancel what waits, ask what runs to end; return whether anything is unfinished still.

    Something is where a run is at work, or where somebody else holds its row just now.
    """
    by = f"schedule {plan.schedule_id}: replaced by the run due {plan.next_due_at.isoformat()}"
    cancel_waiting_of(plan.schedule_id, reason=f"overlap: {by}")
    own = Run.objects.filter(schedule_id=plan.schedule_id, backfill_id=None)
    running = own.filter(state=State.RUNNING)
    free = running.select_for_update(skip_locked=True, no_key=True).values_list("pk", flat=True)
    Run.objects.filter(pk__in=list(free)).update(
        cancel_requested_by=by[:150], cancel_requested_at=Coalesce("cancel_requested_at", Now())
    )
    return own.filter(state__in=UNFINISHED).exists()


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
    enabled = t.enabled AND NOT (p.done AND p.error = '')
  FROM free JOIN scheduling_plan p ON p.schedule_id = free.id
 WHERE t.id = free.id AND p.fired_count > 0
"""


def copy_last_runs(schedule_ids: Iterable[int]) -> None:
    """Copy to PeriodicTask what its own page shows: last run, count, and that a one-off is done.

    Apart from `fire_due`: rows that a user holds are left for another time.
    """
    with lean_cursor() as cursor:
        cursor.execute(COPY_LAST_RUNS, [list(schedule_ids)])
