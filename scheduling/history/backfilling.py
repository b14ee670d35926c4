"""backfill: makes runs for a schedule's occurrences in a range of the past.

All runs are written as held, in one transaction. Beat releases them so that `concurrency` runs of a
backfill are unfinished. Overlap policies do not see them: a backfill's runs and its schedule's own
runs do not wait for, skip or replace each other.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Count, Exists, OuterRef
from django.db.models.functions import Now
from django_celery_beat.models import PeriodicTask

from scheduling import clock, recurrence
from scheduling.broker.doorbell import ring_on_commit
from scheduling.errors import RowLockedError, ScheduleError
from scheduling.execution import cancelling
from scheduling.history import backfill_pace
from scheduling.ids import uuid7
from scheduling.logs import event
from scheduling.models import UNFINISHED, Backfill, Origin, Priority, Run, State
from scheduling.postgres.sql import arrays, lean_cursor
from scheduling.runs.inserting import insert
from scheduling.runs.options import limit
from scheduling.runs.scheduled_calls import columns_of
from scheduling.schedules.planning import MOMENT
from scheduling.schedules.rules import rule_of
from scheduling.schedules.standing import plan_of

logger = logging.getLogger(__name__)

LARGEST = 100_000  # occurrences of one backfill
MOST_AT_ONCE = 1000  # unfinished runs of one backfill
STEP = 5000  # rows written by one statement
EARLIEST = datetime(1, 1, 2, tzinfo=UTC)

# Runs of every origin count: the replay of a failed run has the same nominal instant.
WITH_A_RUN = """
SELECT due_at FROM scheduling_run
 WHERE schedule_id = %(schedule_id)s AND origin = 'schedule'
   AND due_at BETWEEN %(since)s AND %(until)s AND state = ANY(%(states)s)
UNION
SELECT due_at FROM scheduling_run
 WHERE schedule_id = %(schedule_id)s AND origin <> 'schedule'
   AND due_at BETWEEN %(since)s AND %(until)s AND state = ANY(%(states)s)
"""

# If two users ask for the same range at once, the second one sees the runs of the first.
ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(hashtext('scheduling_backfill'), %s)"


@dataclass(frozen=True)
class Extent:
    """The occurrences that a backfill of a range would run, and the others in its range.

    `instants`: the nominal instants to run, oldest first. `done`: how many already have a run that
    succeeded or is unfinished. `pending`: how many are due but not fired yet, and are left to beat.
    `counted_from`: the start of an interval rule, if it is later than the start of the range.
    """

    since: datetime
    until: datetime
    instants: Sequence[datetime]
    done: int
    pending: int
    counted_from: datetime | None = None


@dataclass(frozen=True)
class Progress:
    """How many runs of a backfill are in each state; as text, for people."""

    states: dict[str, int]

    def __str__(self) -> str:
        known = [(self.states[state], state) for state in State.values if state in self.states]
        return ", ".join(f"{count:,} {state}" for count, state in known) or "nothing left of it"

    @property
    def unfinished(self) -> int:
        return sum(self.states.get(state, 0) for state in UNFINISHED)


def extent(
    schedule: PeriodicTask,
    since: datetime,
    until: datetime,
    *,
    again: bool = False,
    now: datetime | None = None,
) -> Extent:
    """Return the extent of a backfill from `since` to `until`, both included; writes nothing.

    Args:
        again: also run the instants that have a run which succeeded or is unfinished.

    Raises:
        ScheduleError: the range is empty, reaches into the future or has too many occurrences; or
            the rule cannot be evaluated.
    """
    now = now or clock.now()
    if since > until:
        raise ScheduleError(f"the range ends ({_iso(until)}) before it begins ({_iso(since)}).")
    if until > now:
        raise ScheduleError(
            f"{_iso(until)} is in the future: a backfill is for the past. The schedule itself runs"
            " its occurrences to come."
        )
    due = _occurrences(schedule, since, until)
    planned = plan_of(schedule).next_due_at
    fired = [instant for instant in due if planned is None or instant < planned]
    done = set() if again else _instants_with_a_run(schedule.pk, since, until)
    instants = [instant for instant in fired if instant not in done]
    anchor = plan_of(schedule).anchor_at
    younger = anchor if schedule.interval_id and anchor and anchor > since else None
    done_already, pending = len(fired) - len(instants), len(due) - len(fired)
    return Extent(since, until, instants, done_already, pending, younger)


def start(
    schedule: PeriodicTask,
    since: datetime,
    until: datetime,
    *,
    by: str,
    concurrency: int = 1,
    again: bool = False,
    now: datetime | None = None,
) -> Backfill:
    """Write a backfill with all its runs, as held and at low priority, in one transaction.

    They have the schedule's task, arguments, queue and attempts as these are now.

    Raises:
        EnqueueError: the task is unknown here, or the schedule's arguments cannot be read or fit.
        ScheduleError: as for `extent`; nothing to run; or a concurrency out of range.
    """
    if not 1 <= concurrency <= MOST_AT_ONCE:
        raise ScheduleError(f"a concurrency of {concurrency} is not from 1 to {MOST_AT_ONCE}.")
    columns = columns_of(schedule)
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(ONE_AT_A_TIME, [schedule.pk])
        found = extent(schedule, since, until, again=again, now=now)
        if not found.instants:
            raise ScheduleError(_nothing_to_run(schedule, found))
        backfill = Backfill.objects.create(
            schedule_id=schedule.pk,
            schedule_name=schedule.name,
            since=since,
            until=until,
            concurrency=concurrency,
            run_count=len(found.instants),
            created_by=by[:150],
        )
        _insert(columns, backfill, found.instants)
        ring_on_commit()
    event(logger, "backfill_started", backfill=backfill.pk, schedule=schedule.pk,
          runs=backfill.run_count, by=by)  # fmt: skip
    return backfill


def cancel(backfill_id: UUID, *, by: str) -> Progress:
    """Cancel the waiting runs of a backfill, and ask the workers of running ones to end them.

    Returns:
        The states of its runs then.

    Raises:
        ScheduleError: the backfill does not exist, or all its runs are final.
        RowLockedError: another transaction has locked some of its runs for `cancelling.PATIENCE`
            seconds; the other runs are cancelled.
    """
    until = time.monotonic() + cancelling.PATIENCE
    with transaction.atomic():
        backfill = with_id(backfill_id)
        if not progress(backfill).unfinished:
            raise ScheduleError(f"backfill {backfill_id} has ended already: nothing to cancel.")
        open_one = Backfill.objects.filter(pk=backfill_id, cancelled_at=None)
        open_one.update(cancelled_at=Now(), cancelled_by=by[:150])
        closed, interrupted = backfill_pace.cancel_runs(backfill_id, by)
    # Beat or a worker may have locked some of the rows.
    while locked := backfill_pace.has_uncancelled(backfill_id):
        if time.monotonic() > until:
            break
        time.sleep(0.01)
        more = backfill_pace.cancel_runs(backfill_id, by)
        closed, interrupted = closed + more[0], interrupted + more[1]
    event(
        logger,
        "backfill_cancelled",
        backfill=backfill_id,
        cancelled=closed,
        interrupted=interrupted,
        by=by,
    )
    if locked:
        raise RowLockedError(
            f"backfill {backfill_id} is cancelled except for runs that another transaction has"
            " locked: cancel it again in a moment."
        )
    return progress(backfill)


def going_on(schedule: PeriodicTask) -> list[Backfill]:
    """Return the schedule's backfills that have unfinished runs."""
    left = Run.objects.filter(backfill_id=OuterRef("pk"), state__in=UNFINISHED)
    return list(Backfill.objects.filter(Exists(left), schedule_id=schedule.pk).order_by("pk"))


def progress(backfill: Backfill) -> Progress:
    """Return how many of a backfill's runs are in each state, without pruned runs."""
    rows = Run.objects.filter(backfill_id=backfill.pk).values_list("state")
    return Progress(dict(rows.annotate(runs=Count("pk")).order_by("state")))


def standing(backfill: Backfill, progress: Progress) -> str:
    """Return the state of a backfill in a word or two."""
    return word(backfill, unfinished=progress.unfinished > 0)


def word(backfill: Backfill, *, unfinished: bool) -> str:
    if unfinished:
        return "being cancelled" if backfill.cancelled_at else "going on"
    return "cancelled" if backfill.cancelled_at else "done"


def with_id(backfill_id: UUID) -> Backfill:
    """Return the backfill with an id.

    Raises:
        ScheduleError: it does not exist.
    """
    backfill = Backfill.objects.filter(pk=backfill_id).first()
    if backfill is None:
        raise ScheduleError(f"backfill {backfill_id} does not exist: `backfill list` shows all.")
    return backfill


def _occurrences(schedule: PeriodicTask, since: datetime, until: datetime) -> list[datetime]:
    if schedule.one_off and not schedule.clocked_id:
        raise ScheduleError(
            f"schedule {schedule.name!r} runs only once, so its rule has no past to fill: use"
            " `run replay` or enqueue its task."
        )
    try:
        # Days off stay days off.
        rule = recurrence.working(rule_of(schedule, anchor=plan_of(schedule).anchor_at))
        found = recurrence.occurrences_between(rule, max(since, EARLIEST) - MOMENT, until)
        due = list(islice(found, LARGEST + 1))
    except recurrence.RecurrenceError as error:
        raise ScheduleError(f"schedule {schedule.name!r}: {error}") from error
    if len(due) > LARGEST:
        raise ScheduleError(
            f"schedule {schedule.name!r} has more than {LARGEST:,} occurrences from {_iso(since)}"
            f" to {_iso(until)}: ask for shorter ranges, one after the other."
        )
    return due


def _instants_with_a_run(schedule_id: int, since: datetime, until: datetime) -> set[datetime]:
    states = [State.SUCCEEDED.value, *(state.value for state in UNFINISHED)]
    parameters = {
        "schedule_id": schedule_id, "since": since, "until": until, "states": states
    }  # fmt: skip
    with lean_cursor() as cursor:
        cursor.execute(WITH_A_RUN, parameters)
        return {due_at for (due_at,) in cursor.fetchall()}


def _insert(columns: dict[str, Any], backfill: Backfill, instants: Sequence[datetime]) -> None:
    shared = {
        **columns,
        # No expiry and no deadline: both count from the nominal instant, which has passed.
        **limit("expires", None),
        "at": None,
        "after": timedelta(0),
        "state": State.HELD,
        "origin": Origin.BACKFILL,
        "priority": Priority.LOW,
        "backfill_id": backfill.pk,
        "enqueued_by": backfill.created_by,
    }
    each = ("id", "due_at")
    with connection.cursor() as cursor:
        for first in range(0, len(instants), STEP):
            rows = [(uuid7(), instant) for instant in instants[first : first + STEP]]
            arrayed = dict(zip(each, arrays(rows, len(each)), strict=True))
            cursor.execute(insert(shared, each), {**shared, **arrayed})


def _nothing_to_run(schedule: PeriodicTask, found: Extent) -> str:
    reasons = []
    if found.done:
        reasons.append(f"{found.done} have a run that succeeded or is unfinished")
    if found.pending:
        reasons.append(f"{found.pending} are due now and left to beat")
    if found.counted_from:
        reasons.append(f"its interval counts from {_iso(found.counted_from)}")
    why = ", ".join(reasons) or "its rule has no occurrence there"
    return (
        f"there is nothing to run of {schedule.name!r} from {_iso(found.since)} to"
        f" {_iso(found.until)}: {why}."
    )


def _iso(instant: datetime) -> str:
    return instant.isoformat().replace("+00:00", "Z")
