"""fire: occurrences that are due become runs, and their plans move on, in one transaction.

Which runs, `deciding` says, by the policies.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from django.db import DatabaseError, IntegrityError, transaction
from psycopg.errors import NotNullViolation

from scheduling.errors import EnqueueError
from scheduling.execution.waiting import ask_to_end, cancel_waiting_of
from scheduling.ids import uuid7_texts
from scheduling.logs import event
from scheduling.models import UNFINISHED, CatchUp, Overlap, Run, State
from scheduling.postgres.prepared import run_prepared
from scheduling.postgres.sql import arrays, is_away, lean_cursor
from scheduling.registry import decode_call, decode_error
from scheduling.runs.hints import Hint, Lane
from scheduling.schedules.deciding import (
    CATCH_UP_STEP,
    Due,
    Moved,
    NewRun,
    Unfinished,
    decide,
    hold,
    sent_to,
)
from scheduling.schedules.planning import BATCH_SETTINGS
from scheduling.schedules.rules import RULE_COLUMNS, RULE_JOINS, with_fields
from scheduling.task_options import CallOptions, routed_by_arguments

logger = logging.getLogger(__name__)

BATCH = 500
CATCH_UP_BATCH = 5000  # runs that a batch makes of instants that were missed, one for each
STATE = NewRun._fields.index("state")
CATCH_UP = 3 + Due._fields.index("catch_up")  # in a row of LOCK_DUE
NONE_LEFT = Unfinished()
NEVER = datetime.max.replace(tzinfo=UTC)


def bounded(column: str) -> str:
    """Return SQL for an interval that Python can hold: a million days at most; NULL stays NULL."""
    low, high = "interval '-1000000 days'", "interval '1000000 days'"
    return (
        f"CASE WHEN {column} < {low} THEN {low} WHEN {column} > {high} THEN {high} "
        f"ELSE {column} END"
    )


# What a decision rests on, besides how many runs are unfinished and whether the arguments can be
# read. What counts only under one condition is NULL without it, so that more plans are alike.
# `alone` is what has the like of nobody: an offset of its own, or arguments too long for an array.
SHAPE = """
    next_due_at, alone, needs_plan, last_due_at, anchor_at, one_off, task, headers, queue, exchange,
    routing_key, priority, catch_up, catch_up_window, overlap, spread, deadline_after,
    expire_seconds, rule, replaced_at, start_time, expires, calendar_id, excluded_day, crontab_id,
    interval_id, clocked_id, solar_id
"""

# Plans of one shape make one row. `low` spares the dead entries that an old snapshot keeps at the
# index's beginning.
LOCK_DUE = f"""
WITH due AS MATERIALIZED (
    SELECT * FROM scheduling_plan
     WHERE next_due_at <= statement_timestamp() AND next_due_at > %(low)s
     ORDER BY next_due_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED),
plans AS (
    SELECT t.id, COALESCE(NULLIF(t.args, ''), '[]') AS args,
        COALESCE(NULLIF(t.kwargs, ''), '{{}}') AS kwargs,
        CASE WHEN y.spread <> interval '0'
            OR octet_length(t.args) + octet_length(t.kwargs) > 10000 THEN t.id END AS alone,
        p.next_due_at, p.needs_plan, t.one_off, t.task, COALESCE(t.headers, '') AS headers,
        t.queue, t.exchange, t.routing_key, t.priority, t.expire_seconds, t.start_time, t.expires,
        t.crontab_id, t.interval_id, t.clocked_id, t.solar_id,
        CASE WHEN p.needs_plan OR t.interval_id IS NOT NULL THEN p.anchor_at END AS anchor_at,
        CASE WHEN p.needs_plan THEN p.last_due_at END AS last_due_at,
        CASE WHEN p.needs_plan THEN p.rule ELSE '' END AS rule,
        CASE WHEN p.needs_plan THEN LEAST(p.replaced_at, p.plan_from) END AS replaced_at,
        COALESCE(y.catch_up, 'latest') AS catch_up, y.calendar_id, y.excluded_day,
        {bounded("y.catch_up_window")} AS catch_up_window, COALESCE(y.overlap, 'allow') AS overlap,
        COALESCE({bounded("y.spread")}, interval '0') AS spread,
        {bounded("y.deadline_after")} AS deadline_after
      FROM due p
      JOIN django_celery_beat_periodictask t ON t.id = p.schedule_id
      LEFT JOIN scheduling_policy y ON y.schedule_id = p.schedule_id),
shapes AS (
    SELECT array_agg(id) AS ids, array_agg(args) AS args, array_agg(kwargs) AS kwargs, {SHAPE}
      FROM plans GROUP BY {SHAPE})
SELECT t.ids, t.args, t.kwargs, statement_timestamp(), t.ids[1], t.next_due_at, t.needs_plan,
    t.last_due_at, t.anchor_at, t.one_off, t.task, t.args[1], t.kwargs[1], t.headers, t.queue,
    t.exchange, t.routing_key, t.priority, t.catch_up, t.catch_up_window, t.overlap, t.spread,
    t.deadline_after, t.expire_seconds, t.rule, COALESCE(t.replaced_at, statement_timestamp()),
    {RULE_COLUMNS}
  FROM shapes t
  CROSS JOIN LATERAL (SELECT t.calendar_id, t.excluded_day) AS y
  {RULE_JOINS}
 ORDER BY t.next_due_at
"""  # noqa: S608 (constants only)

LOCK_NEWEST = LOCK_DUE.replace("ORDER BY next_due_at LIMIT", "ORDER BY next_due_at DESC LIMIT")

# An edit of the call waits for whoever has locked its plan (its trigger does). Only one that was
# committed within LOCK_DUE, before its lock, shows here: its task is not the one that LOCK_DUE read
# the queue of. No run may have NULL for a task, so then nothing is written (`was_edited`).
# A row for the runs that differ in nothing but their ids and schedules, and one for the plans.
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

    `hints` are of the runs that are queued already, and have to be pushed now; `lanes` those of all
    runs, with the first `run_at` of those that may start and are not queued. `behind`: the first
    instant at which one of the plans is due again already.
    """

    plans: int
    schedule_ids: Sequence[int]
    one_off_ids: Sequence[int]
    hints: Sequence[Hint] = ()
    behind: datetime | None = None
    lanes: Mapping[Lane, datetime | None] = MappingProxyType({})


class Runs(NamedTuple):
    """Runs that differ in nothing but their ids and schedules; `like` is the first of them."""

    like: NewRun
    ids: list[str]
    schedule_ids: list[int]

    def row(self) -> tuple[object, ...]:
        """Return them as one row, in WRITE's order."""
        return (_literal(self.ids), _literal(self.schedule_ids), *self.like[2:])

    def divided(self, count: int) -> tuple["Runs", "Runs"]:
        """Return the first `count` of them as queued, and the others."""
        run = self.like
        queued = NewRun._make((*run[:STATE], State.QUEUED, *run[STATE + 1 :]))
        return (
            Runs(queued, self.ids[:count], self.schedule_ids[:count]),
            Runs(run, self.ids[count:], self.schedule_ids[count:]),
        )

    def hints(self, task: str) -> list[Hint]:
        like = self.like
        return [Hint(key, 1, task, like.queue, like.priority, like.options) for key in self.ids]


class Moves(NamedTuple):
    """Plans that move on alike; `like` is the first of them."""

    like: Moved
    schedule_ids: list[int]

    def row(self) -> tuple[object, ...]:
        """Return them as one row, in WRITE's order."""
        return (_literal(self.schedule_ids), *self.like[1:])


def _literal(values: Iterable[object]) -> str:
    return f"{{{','.join(map(str, values))}}}"


def fire_due(
    low: datetime,
    limit: int = BATCH,
    room: Mapping[Lane, int] | None = None,
    *,
    newest: bool = False,
) -> Fired:
    """Make runs of up to `limit` due plans whose instant is after `low`; move these plans on.

    The oldest are taken first, or the newest, where there are more. Plans that are alike are
    decided on once: a herd is mostly one decision.

    A run that may start now is written as queued where its lane is in `room`, which says how many
    hints a lane in which nothing waits can take. It saves the run its second version: `publish`
    would queue it a moment later.
    """
    while True:
        try:
            return _fire(low, limit, dict(room or {}), newest=newest)
        except IntegrityError as error:
            if not was_edited(error):
                raise


def was_edited(error: IntegrityError) -> bool:
    """Return whether a schedule was edited while its plan was about to be locked; see WRITE."""
    cause = error.__cause__
    return isinstance(cause, NotNullViolation) and cause.diag.column_name == "task"


def _fire(low: datetime, limit: int, room: MutableMapping[Lane, int], *, newest: bool) -> Fired:
    hints: list[Hint] = []
    runs: list[Runs] = []
    moves: list[Moves] = []
    one_offs: list[int] = []
    with transaction.atomic(), lean_cursor() as cursor:
        cursor.execute(BATCH_SETTINGS)
        rows = run_prepared(LOCK_NEWEST if newest else LOCK_DUE, {"low": low, "limit": limit})
        if not rows:
            return Fired(0, (), ())
        step = _step(rows)
        for plan, schedule_ids, there in _alike(rows):
            new, move = decide(plan, there, step)
            replacing = there.all and plan.overlap == Overlap.REPLACE and _runs_any(new)
            if replacing and _cancel_unfinished(plan):
                new = [hold(run) for run in new]
            for run in new:
                ids = [str(run.id), *uuid7_texts(len(schedule_ids) - 1)]
                made = Runs(run, ids, schedule_ids)
                if count := _may_be_queued(made, plan.now, room):
                    queued, made = made.divided(count)
                    hints += queued.hints(plan.task)
                    runs.append(queued)
                if made.ids:
                    runs.append(made)
            moves.append(Moves(move, schedule_ids))
            one_offs += schedule_ids if plan.one_off else ()
            now = plan.now
        columns = arrays([made.row() for made in runs], len(NewRun._fields))
        columns += arrays([moved.row() for moved in moves], len(Moved._fields))
        run_prepared(WRITE, columns)
    _tell(runs)
    plans = sum(len(moved.schedule_ids) for moved in moves)
    fired = [key for moved in moves if moved.like.fired for key in moved.schedule_ids]
    instants = [moved.like.next_due_at for moved in moves]
    behind = min((at for at in instants if at is not None and at <= now), default=None)
    return Fired(plans, fired, one_offs, hints, behind, _lanes_of(runs, now))


def _lanes_of(runs: Iterable[Runs], now: datetime) -> dict[Lane, datetime | None]:
    """Return the lanes of all runs, with the first `run_at` of those that wait to be queued."""
    lanes = dict[Lane, datetime | None]()
    for like, *_ in runs:
        lane = Lane(like.queue, like.priority)
        first = lanes.setdefault(lane, None)
        if like.state == State.SCHEDULED and like.run_at <= now:
            lanes[lane] = like.run_at if first is None else min(first, like.run_at)
    return lanes


def rehearse() -> None:
    """Fire nothing, so that a new session of Postgres has read what the first batch needs."""
    with transaction.atomic():
        run_prepared(LOCK_DUE, {"low": NEVER, "limit": 1})
        run_prepared(WRITE, arrays((), len(NewRun._fields)) + arrays((), len(Moved._fields)))


def _step(rows: Sequence[tuple[Any, ...]]) -> int:
    """Return how many missed instants of a plan may become runs, so that the batch ends soon."""
    count = sum(len(row[0]) for row in rows if row[CATCH_UP] != CatchUp.LATEST)
    return max(min(CATCH_UP_STEP, CATCH_UP_BATCH // max(count, 1)), 1)


def _alike(rows: Sequence[tuple[Any, ...]]) -> Iterator[tuple[Due, list[int], Unfinished]]:
    """Yield the due plans on which one decision is the same: the first, and all their schedules.

    A decision rests on a plan's shape, on its schedule's unfinished runs, and on what is wrong with
    its arguments. Only a plan whose runs are to be cancelled is alone.
    """
    shapes = with_fields(Due, [row[3:] for row in rows])
    unfinished = _unfinished_of(shapes, rows)
    sent = _sent_by_arguments(shapes, rows) if routed_by_arguments() else {}
    for shape, (schedule_ids, args, kwargs, *_) in zip(shapes, rows, strict=True):
        if len(schedule_ids) == 1 and not sent:
            yield shape, schedule_ids, unfinished.get(shape.schedule_id, NONE_LEFT)
            continue
        parts = defaultdict[tuple[Any, ...], list[tuple[int, str, str]]](list)
        for plan in zip(schedule_ids, args, kwargs, strict=True):
            there = unfinished.get(plan[0], NONE_LEFT)
            alone = plan[0] if there.all and shape.overlap == Overlap.REPLACE else 0
            goes = sent.get((_destination(shape), *plan[1:])) if sent else None
            parts[decode_error(*plan[1:]), there, alone, goes].append(plan)
        for (_, there, _, goes), plans in parts.items():
            first, first_args, first_kwargs = plans[0]
            like = shape._replace(
                schedule_id=first, args=first_args, kwargs=first_kwargs, sent=goes
            )
            yield like, [plan[0] for plan in plans], there


def _destination(shape: Due) -> tuple[object, ...]:
    return shape.task, shape.queue, shape.exchange, shape.routing_key, shape.priority


def _sent_by_arguments(
    shapes: Sequence[Due], rows: Sequence[tuple[Any, ...]]
) -> dict[tuple[object, ...], CallOptions | str]:
    """Ask a router that is a function once for each different call: where it goes, or why not.

    The router may use this connection. If it spoils the transaction, every call is asked about
    again in a savepoint of its own, so that one call's router does not stop the others.
    """
    calls = {
        (_destination(shape), args, kwargs): shape
        for shape, row in zip(shapes, rows, strict=True)
        for args, kwargs in zip(row[1], row[2], strict=True)
    }
    try:
        with transaction.atomic():
            return {call: _sent(shape, *call[1:]) for call, shape in calls.items()}
    except DatabaseError:
        return {call: _sent_apart(shape, *call[1:]) for call, shape in calls.items()}


def _sent(shape: Due, args: str, kwargs: str) -> CallOptions | str:
    try:
        return sent_to(shape, *decode_call(args, kwargs))
    except EnqueueError as error:
        return str(error)


def _sent_apart(shape: Due, args: str, kwargs: str) -> CallOptions | str:
    try:
        with transaction.atomic():
            return _sent(shape, args, kwargs)
    except DatabaseError as error:
        if is_away(error):
            raise
        return f"the router of task {shape.task} failed: {error}"


def _may_be_queued(made: Runs, now: datetime, room: MutableMapping[Lane, int]) -> int:
    """Return how many of the runs may start now and have room for their hints; take that room."""
    run = made.like
    if run.state != State.SCHEDULED or run.run_at > now:
        return 0
    if run.expires_at is not None and run.expires_at <= now:
        return 0
    lane = Lane(run.queue, run.priority)
    left = room.get(lane, 0)
    count = min(left, len(made.ids))
    if count > 0:
        room[lane] = left - count
    return max(count, 0)


def _runs_any(runs: Iterable[NewRun]) -> bool:
    return any(run.state != State.SKIPPED for run in runs)


def _cancel_unfinished(plan: Due) -> bool:
    """Cancel what waits, ask what runs to end; return whether anything is unfinished still.

    Something is where a run is at work, or where somebody else holds its row just now.
    """
    by = f"schedule {plan.schedule_id}: replaced by the run due {plan.next_due_at.isoformat()}"
    cancel_waiting_of(plan.schedule_id, reason=f"overlap: {by}")
    own = Run.objects.filter(schedule_id=plan.schedule_id, backfill_id=None)
    ask_to_end(own, by=by)
    return own.filter(state__in=UNFINISHED).exists()


def _unfinished_of(shapes: Sequence[Due], rows: Sequence[tuple[Any, ...]]) -> dict[int, Unfinished]:
    asking = [
        schedule_id
        for shape, row in zip(shapes, rows, strict=True)
        if shape.overlap != Overlap.ALLOW or shape.catch_up == CatchUp.ALL
        for schedule_id in row[0]
    ]
    if not asking:
        return {}
    with lean_cursor() as cursor:
        cursor.execute(UNFINISHED_OF, [asking])
        return {row[0]: Unfinished(*row[1:]) for row in cursor.fetchall()}


def _tell(runs: Sequence[Runs]) -> None:
    if runs:
        count = sum(len(made.ids) for made in runs)
        event(logger, "runs_fired", runs=count, first_due=min(made.like.due_at for made in runs))
    for like, ids, schedule_ids in runs:
        if like.state == State.SKIPPED:
            for run, schedule_id in zip(ids, schedule_ids, strict=True):
                event(logger, "run_skipped", run=run, schedule=schedule_id, reason=like.reason)
