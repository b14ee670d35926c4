"""Groups due plans so that one decision serves many: a herd is mostly one decision.

A decision rests on the columns in which plans are alike, on the unfinished runs of the schedule, on
arguments that cannot be read, and on the answer of a router that looks at the arguments.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from django.db import DatabaseError, transaction

from scheduling.beat.deciding import Due, Unfinished
from scheduling.beat.due_plans import Alike
from scheduling.errors import EnqueueError
from scheduling.models import CatchUp, Overlap
from scheduling.postgres.sql import is_away, lean_cursor
from scheduling.registry import decode_call, decode_error
from scheduling.schedules.destinations import sent_to
from scheduling.task_options import CallOptions, routed_by_arguments

NONE_LEFT = Unfinished()

# A backfill's runs do not count: they and the schedule's own runs do not wait for each other.
UNFINISHED_OF = """
SELECT schedule_id, count(*) FILTER (WHERE state = 'running'),
    count(*) FILTER (WHERE state = 'held'), count(*)
  FROM scheduling_run
 WHERE schedule_id = ANY(%s) AND backfill_id IS NULL
   AND state IN ('scheduled', 'held', 'queued', 'running')
 GROUP BY schedule_id
"""


class Shared(NamedTuple):
    """Plans that share a decision: the first one, the schedules of all, their unfinished runs."""

    plan: Due
    schedule_ids: list[int]
    unfinished: Unfinished


def shared_decisions(due: Sequence[Alike]) -> Iterator[Shared]:
    """Divide plans that are alike until each part needs one decision."""
    unfinished = _unfinished_of(due)
    sent = _sent_by_arguments(due) if routed_by_arguments() else {}
    for alike in due:
        like, schedule_ids, *_ = alike
        if len(schedule_ids) == 1 and not sent:
            yield Shared(like, schedule_ids, unfinished.get(like.schedule_id, NONE_LEFT))
            continue
        parts = defaultdict[tuple[Any, ...], list[tuple[int, str, str]]](list)
        for schedule_id, args, kwargs in zip(*alike[1:], strict=True):
            there = unfinished.get(schedule_id, NONE_LEFT)
            # Each schedule whose unfinished runs are to be cancelled has a decision of its own.
            alone = schedule_id if there.all and like.overlap == Overlap.REPLACE else 0
            goes = sent.get((_destination(like), args, kwargs)) if sent else None
            parts[decode_error(args, kwargs), there, alone, goes].append(
                (schedule_id, args, kwargs)
            )
        for (_, there, _, goes), plans in parts.items():
            first, args, kwargs = plans[0]
            plan = like._replace(schedule_id=first, args=args, kwargs=kwargs, sent=goes)
            yield Shared(plan, [schedule_id for schedule_id, _, _ in plans], there)


def _unfinished_of(due: Sequence[Alike]) -> dict[int, Unfinished]:
    """Return the numbers of unfinished runs of each schedule whose policies ask for them."""
    asking = [
        schedule_id
        for alike in due
        if alike.like.overlap != Overlap.ALLOW or alike.like.catch_up == CatchUp.ALL
        for schedule_id in alike.schedule_ids
    ]
    if not asking:
        return {}
    with lean_cursor() as cursor:
        cursor.execute(UNFINISHED_OF, [asking])
        return {schedule_id: Unfinished(*counts) for schedule_id, *counts in cursor.fetchall()}


def _destination(plan: Due) -> tuple[object, ...]:
    return plan.task, plan.queue, plan.exchange, plan.routing_key, plan.priority


def _sent_by_arguments(due: Sequence[Alike]) -> dict[tuple[object, ...], CallOptions | str]:
    """Ask a router function once for each different call; return its answers, or the problems.

    The router may use this connection. If it breaks the transaction, it is asked about every call
    again, each in a savepoint of its own, so that one call does not stop the others.
    """
    calls = {
        (_destination(alike.like), args, kwargs): alike.like
        for alike in due
        for args, kwargs in zip(alike.args, alike.kwargs, strict=True)
    }
    try:
        with transaction.atomic():
            return {call: _sent(plan, *call[1:]) for call, plan in calls.items()}
    except DatabaseError:
        return {call: _sent_in_savepoint(plan, *call[1:]) for call, plan in calls.items()}


def _sent(plan: Due, args: str, kwargs: str) -> CallOptions | str:
    try:
        return sent_to(plan, *decode_call(args, kwargs))
    except EnqueueError as error:
        return str(error)


def _sent_in_savepoint(plan: Due, args: str, kwargs: str) -> CallOptions | str:
    try:
        with transaction.atomic():
            return _sent(plan, args, kwargs)
    except DatabaseError as error:
        if is_away(error):
            raise
        return f"the router of task {plan.task} failed: {error}"
