"""fire: due occurrences become runs, and their plans move on, in one transaction.

1. `due_plans` locks the due plans and reads plans that are alike as one.
2. `decisions` divides them until each part needs one decision, and `deciding` decides.
3. `new_rows` gathers runs that differ in their ids alone, and queues runs that find room.
4. WRITE writes the runs and the plans.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import NamedTuple

from django.db import IntegrityError, transaction
from psycopg.errors import NotNullViolation

from scheduling.beat import due_plans
from scheduling.beat.deciding import CATCH_UP_STEP, Due, Moved, NewRun, decide, hold
from scheduling.beat.decisions import Shared, shared_decisions
from scheduling.beat.due_plans import Alike
from scheduling.beat.new_rows import Moves, Room, Runs, runs_for
from scheduling.execution.cancelling import ask_to_end, cancel_waiting_of
from scheduling.logs import event
from scheduling.models import UNFINISHED, CatchUp, Overlap, Run, State
from scheduling.postgres.prepared import run_prepared
from scheduling.postgres.sql import arrays, lean_cursor
from scheduling.runs.hints import Hint, Lane
from scheduling.schedules.planning import BATCH_SETTINGS

logger = logging.getLogger(__name__)

BATCH = 500
CATCH_UP_BATCH = 5000  # runs that a batch makes of missed instants under catch-up `all`
NEVER = datetime.max.replace(tzinfo=UTC)

# Each row of parameters is a group of runs, or of plans, that differ in their ids alone.
# An edit of a schedule waits for a transaction that has locked its plan (its trigger locks it). An
# edit that committed between the start of LOCK_DUE and its lock shows here: the schedule's task is
# not the task whose queue LOCK_DUE read. The task of the run is then NULL, which the column
# refuses, so that nothing is written (`was_edited`).
WRITE = """
WITH fired AS (
    INSERT INTO scheduling_run
        (id, schedule_id, schedule_name, origin, task, args, kwargs, options, queue, priority,
         due_at, run_at, deadline, expires_at, state, reason, queued_at, finished_at, coalesced,
         max_attempts)
    SELECT r.id, t.id, t.name, 'schedule', CASE WHEN t.task = a.task THEN t.task END,
        COALESCE(NULLIF(t.args, ''), '[]'), COALESCE(NULLIF(t.kwargs, ''), '{}'), a.options,
        a.queue, a.priority, a.due_at, a.run_at, a.deadline, a.expires_at, a.state, a.reason,
        CASE WHEN a.state = 'queued' THEN clock_timestamp() END,
        CASE WHEN a.state = 'skipped' THEN statement_timestamp() END,
        a.coalesced, y.max_attempts
      FROM unnest(%s::text[], %s::text[], %s::text[], %s::timestamptz[], %s::timestamptz[],
                  %s::text[], %s::text[], %s::integer[], %s::text[], %s::smallint[], %s::text[],
                  %s::timestamptz[], %s::timestamptz[])
        AS a (ids, schedule_ids, task, due_at, run_at, state, reason, coalesced, queue, priority,
              options, deadline, expires_at)
      CROSS JOIN unnest(a.ids::uuid[], a.schedule_ids::integer[]) AS r (id, schedule_id)
      JOIN django_celery_beat_periodictask t ON t.id = r.schedule_id
      LEFT JOIN scheduling_policy y ON y.schedule_id = t.id
    ON CONFLICT (schedule_id, due_at) WHERE origin = 'schedule' DO NOTHING)
UPDATE scheduling_plan p SET next_due_at = a.next_due_at, last_due_at = a.last_due_at,
    fired_count = p.fired_count + a.fired, error = a.error, done = p.done OR a.done
  FROM unnest(%s::text[], %s::timestamptz[], %s::timestamptz[], %s::integer[], %s::text[],
              %s::boolean[]) AS a (schedule_ids, next_due_at, last_due_at, fired, error, done)
    CROSS JOIN unnest(a.schedule_ids::integer[]) AS n (schedule_id)
 WHERE p.schedule_id = n.schedule_id
"""


class Fired(NamedTuple):
    """The effect of one `fire_due`."""

    plans: int  # that were due
    schedule_ids: Sequence[int]  # whose last run moved
    one_off_ids: Sequence[int]
    hints: Sequence[Hint] = ()  # of runs that are queued already, to be pushed now
    behind: datetime | None = None  # the first instant at which one of the plans is due again
    # The lanes of all runs, each with the first `run_at` of runs that may start and are not queued.
    lanes: Mapping[Lane, datetime | None] = MappingProxyType({})


def fire_due(
    low: datetime,
    limit: int = BATCH,
    room: Mapping[Lane, int] | None = None,
    *,
    newest: bool = False,
) -> Fired:
    """Make runs of up to `limit` due plans whose instant is after `low`; move these plans on.

    Args:
        room: hints that a lane can take in which no run waits; see `new_rows.Room`.
        newest: take the plans with the newest instants, if there are more than `limit`.
    """
    while True:
        try:
            return _fire(low, limit, Room(room or {}), newest=newest)
        except IntegrityError as error:
            if not was_edited(error):
                raise


def was_edited(error: IntegrityError) -> bool:
    """Return whether a schedule was edited while its plan was about to be locked; see WRITE."""
    cause = error.__cause__
    return isinstance(cause, NotNullViolation) and cause.diag.column_name == "task"


def _fire(low: datetime, limit: int, room: Room, *, newest: bool) -> Fired:
    hints: list[Hint] = []
    runs: list[Runs] = []
    moves: list[Moves] = []
    one_offs: list[int] = []
    with transaction.atomic(), lean_cursor() as cursor:
        cursor.execute(BATCH_SETTINGS)
        due = due_plans.lock_due(low, limit, newest=newest)
        if not due:
            return Fired(0, (), ())
        now, step = due[0].like.now, _step(due)
        for shared in shared_decisions(due):
            plan, schedule_ids, _ = shared
            new, move = _decided(shared, step)
            for run in new:
                for made in room.divide(runs_for(run, schedule_ids), now):
                    runs.append(made)
                    hints += made.hints(plan.task) if made.like.state == State.QUEUED else ()
            moves.append(Moves(move, schedule_ids))
            one_offs += schedule_ids if plan.one_off else ()
        _write(runs, moves)
    _log(runs)
    plans = sum(len(moved.schedule_ids) for moved in moves)
    fired = [key for moved in moves if moved.like.fired for key in moved.schedule_ids]
    instants = [moved.like.next_due_at for moved in moves]
    behind = min((at for at in instants if at is not None and at <= now), default=None)
    return Fired(plans, fired, one_offs, hints, behind, _lanes_of(runs, now))


def _decided(shared: Shared, step: int) -> tuple[list[NewRun], Moved]:
    """Decide on plans; under overlap `replace`, also cancel the runs that are replaced."""
    plan, _, unfinished = shared
    runs, move = decide(plan, unfinished, step)
    replaces = unfinished.all and plan.overlap == Overlap.REPLACE
    if replaces and any(run.state != State.SKIPPED for run in runs) and _cancel_unfinished(plan):
        runs = [hold(run) for run in runs]
    return runs, move


def _write(runs: Sequence[Runs], moves: Sequence[Moves]) -> None:
    columns = arrays([made.row() for made in runs], len(NewRun._fields))
    columns += arrays([moved.row() for moved in moves], len(Moved._fields))
    run_prepared(WRITE, columns)


def _lanes_of(runs: Iterable[Runs], now: datetime) -> dict[Lane, datetime | None]:
    lanes = dict[Lane, datetime | None]()
    for like, *_ in runs:
        lane = Lane(like.queue, like.priority)
        first = lanes.setdefault(lane, None)
        if like.state == State.SCHEDULED and like.run_at <= now:
            lanes[lane] = like.run_at if first is None else min(first, like.run_at)
    return lanes


def rehearse() -> None:
    """Fire nothing: a new session of Postgres reads the catalogs that the first batch needs."""
    with transaction.atomic():
        due_plans.lock_due(NEVER, 1)
        _write((), ())


def _step(due: Sequence[Alike]) -> int:
    """Return how many missed instants of one plan may become runs, so that the batch ends soon."""
    catching_up = sum(
        len(alike.schedule_ids) for alike in due if alike.like.catch_up != CatchUp.LATEST
    )
    return max(min(CATCH_UP_STEP, CATCH_UP_BATCH // max(catching_up, 1)), 1)


def _cancel_unfinished(plan: Due) -> bool:
    """Cancel the waiting runs and ask the running ones to end; return whether any are left.

    A run is left if it is running, or if another transaction has locked its row.
    """
    by = f"schedule {plan.schedule_id}: replaced by the run due {plan.next_due_at.isoformat()}"
    cancel_waiting_of(plan.schedule_id, reason=f"overlap: {by}")
    own = Run.objects.filter(schedule_id=plan.schedule_id, backfill_id=None)
    ask_to_end(own, by=by)
    return own.filter(state__in=UNFINISHED).exists()


def _log(runs: Sequence[Runs]) -> None:
    if runs:
        count = sum(len(made.ids) for made in runs)
        event(logger, "runs_fired", runs=count, first_due=min(made.like.due_at for made in runs))
    for like, ids, schedule_ids in runs:
        if like.state == State.SKIPPED:
            for run, schedule_id in zip(ids, schedule_ids, strict=True):
                event(logger, "run_skipped", run=run, schedule=schedule_id, reason=like.reason)
