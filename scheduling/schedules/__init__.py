"""Schedules: add, pause, resume, remove and preview them.

The commands, the admin and whatever else speaks for a user fetch a schedule and call one function
here. Plans are beat's: what is written here reaches it through the triggers of migration 0002.
"""

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Unpack

from django.db import IntegrityError, transaction
from django.db.models import Q
from django_celery_beat.models import PeriodicTask

from scheduling import clock, recurrence
from scheduling.errors import ScheduleError
from scheduling.logs import event
from scheduling.models import ManagedBy, Policy, Priority, Schedule
from scheduling.registry import check_call, encode
from scheduling.schedules import policies
from scheduling.schedules.destinations import refuse_without_queue
from scheduling.schedules.planning import spread_offset
from scheduling.schedules.policies import PolicyOptions, check_columns
from scheduling.schedules.rule_rows import Cron, Every, Once, column_of, row_of
from scheduling.schedules.rules import rule_of
from scheduling.schedules.standing import plan_of, policy_of, with_rows

__all__ = [
    "Cron",
    "Every",
    "NextOccurrence",
    "Once",
    "PolicyOptions",
    "add",
    "named",
    "next_occurrences",
    "pause",
    "paused",
    "policy_of",
    "refuse_if_code",
    "remove",
    "resume",
]

logger = logging.getLogger(__name__)

# Up to here a spread, or another zone's clocks, can be added to an instant.
END = datetime(9000, 1, 1, tzinfo=UTC)
# Names looked through for one that was mistyped.
NAMES_COMPARED = 5000


@dataclass(frozen=True)
class NextOccurrence:
    """An occurrence to come: when it is due, when it may start (later by the spread), and where.

    `local` is `due_at` in the rule's time zone; `dst`, `missing` and `missing_more` say what a
    change of clocks did to it, `moved_from` and `day_off` what its calendar did, as in
    `recurrence.Occurrence`.
    """

    due_at: datetime
    run_at: datetime
    local: datetime
    dst: str
    missing: datetime | None = None
    moved_from: date | None = None
    day_off: str = ""
    missing_more: int = 0

    @property
    def missing_words(self) -> str:
        """What the clocks leave out, for people: "2027-03-28 02:30 and 1 more"."""
        more = f" and {self.missing_more:,} more" if self.missing_more else ""
        return f"{self.missing:%Y-%m-%d %H:%M}{more}" if self.missing else ""


def add(
    name: str,
    task: str,
    rule: Cron | Every | Once,
    *,
    by: str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    priority: Priority | None = None,
    queue: str | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    description: str = "",
    now: datetime | None = None,
    **policy: Unpack[PolicyOptions],
) -> Schedule:
    """Make a schedule, with a policy where anything but the defaults is asked for.

    A rule's row that exists already is shared, as in django-celery-beat's own forms.

    Args:
        start: the first occurrence is at or after this instant; intervals count from it.
        end: nothing is due after this instant.

    Raises:
        EnqueueError: the task is unknown, or the arguments do not fit it.
        ScheduleError: the name is taken, the rule cannot be read or never fires after now, or
            another value is out of range.
    """
    now = now or clock.now()
    check_call(task, args, kwargs or {})
    if Schedule.objects.filter(name=name).exists():
        raise _name_taken(name, _is_of_code(name))
    schedule = Schedule(
        name=name,
        task=task,
        args=encode(list(args)),
        kwargs=encode(dict(kwargs or {})),
        priority=priority,
        queue=queue,
        start_time=start,
        expires=end,
        description=description,
        one_off=isinstance(rule, Once),
    )
    check_columns(schedule)
    refuse_without_queue(schedule)
    if name and not name.strip():
        raise ScheduleError(f"the name {name!r} is blank: give one that can be read.")
    columns = policies.checked(policy)
    schedule.policy = Policy(**columns)
    try:
        setattr(schedule, column_of(rule), row_of(rule, now))
        recurrence.check(rule_of(schedule, anchor=now), now)
    except recurrence.RecurrenceError as error:
        raise ScheduleError(str(error)) from error
    with transaction.atomic():
        _insert(schedule, columns)
    event(logger, "schedule_added", schedule=schedule.pk, called=name, by=by)
    return schedule


def pause(
    schedule: PeriodicTask,
    *,
    by: str,
    until: datetime | None = None,
    reason: str = "",
    now: datetime | None = None,
) -> bool:
    """Let nothing of the schedule's come due, for good or until an instant; the last word counts.

    Returns:
        Whether it was running; False where this only changed the end and the reason of a pause.
    """
    now = now or clock.now()
    if until is not None and until <= now:
        raise ScheduleError(f"a pause until {until.isoformat()} would be over already.")
    values = {"paused_until": until, "pause_reason": reason, "paused_by": by}
    check_columns(Policy(schedule=schedule, **values))
    policy = Policy.objects.filter(schedule=schedule)
    try:
        with transaction.atomic():
            Policy.objects.bulk_create([Policy(schedule=schedule)], ignore_conflicts=True)
            began = policy.exclude(paused(now)).update(paused_at=now, **values)
            if not began:
                policy.update(**values)
    except IntegrityError:
        raise _gone(schedule) from None
    event(logger, "schedule_paused", schedule=schedule.pk, until=until, by=by)
    return bool(began)


def resume(schedule: PeriodicTask, *, by: str, now: datetime | None = None) -> bool:
    """End a pause: the next occurrence is the first one after now.

    Returns:
        Whether the schedule was paused.
    """
    now = now or clock.now()
    resumed = Policy.objects.filter(paused(now), schedule=schedule).update(
        paused_at=None, paused_until=None, pause_reason="", paused_by="", resumed_at=now
    )
    if resumed:
        event(logger, "schedule_resumed", schedule=schedule.pk, by=by)
    return bool(resumed)


def remove(schedule: PeriodicTask, *, by: str = "") -> None:
    """Delete the schedule; the runs it has made stay, and those that wait still run.

    Raises:
        ScheduleError: it belongs to code, or is gone already.
    """
    others = Schedule.objects.exclude(policy__managed_by=ManagedBy.CODE)
    deleted, _ = others.filter(pk=schedule.pk).delete()
    if not deleted:
        refuse_if_code(schedule)
        raise _gone(schedule)
    event(logger, "schedule_removed", schedule=schedule.pk, called=schedule.name, by=by)


def refuse_if_code(schedule: PeriodicTask) -> None:
    """Raise ScheduleError if only code may change the schedule."""
    if Policy.objects.filter(schedule=schedule, managed_by=ManagedBy.CODE).exists():
        raise ScheduleError(
            f"schedule {schedule.name!r} is managed by code: change CELERY_BEAT_SCHEDULE in the"
            " settings, then run `manage.py schedule sync`. Here it can only be paused and resumed."
        )


def named(name: str) -> Schedule:
    """Return the schedule of that name.

    Raises:
        ScheduleError: there is none; the nearest names are in the message.
    """
    schedule: Schedule | None = with_rows().filter(name=name).first()
    if schedule is None:
        names = list(Schedule.objects.values_list("name", flat=True)[:NAMES_COMPARED])
        near = " or ".join(map(repr, difflib.get_close_matches(name, names, n=3)))
        hint = f"did you mean {near}?" if near else "`schedule list` shows all."
        raise ScheduleError(f"there is no schedule {name!r}: {hint}")
    return schedule


def next_occurrences(
    schedule: PeriodicTask, n: int, after: datetime | None = None
) -> list[NextOccurrence]:
    """Return the next `n` occurrences (fewer if the rule ends) after an instant, by default now.

    They are what the rule yields, whether or not the schedule is paused or disabled.

    Raises:
        ScheduleError: the rule cannot be evaluated.
    """
    try:
        rule = rule_of(schedule, anchor=plan_of(schedule).anchor_at)
        found = recurrence.preview(rule, after or clock.now(), n)
        found = [occurrence for occurrence in found if occurrence.due_at < END]
    except recurrence.RecurrenceError as error:
        raise ScheduleError(f"schedule {schedule.name!r}: {error}") from error
    offset = spread_offset(schedule.pk, policy_of(schedule).spread)
    return [
        NextOccurrence(
            o.due_at,
            _later(o.due_at, offset),
            o.local,
            o.dst,
            o.missing,
            o.moved_from,
            o.day_off,
            o.missing_more,
        )
        for o in found
    ]


def _later(due_at: datetime, offset: timedelta) -> datetime:
    """Return when a run may start; raw SQL can write a spread that no instant can hold."""
    try:
        return due_at + offset
    except OverflowError:
        return END


def paused(now: datetime) -> Q:
    """Return the condition on Policy that a pause stands at `now`."""
    return Q(paused_at__isnull=False) & (Q(paused_until__isnull=True) | Q(paused_until__gt=now))


def _insert(schedule: Schedule, policy: Mapping[str, Any]) -> None:
    """Save a checked schedule, with the rule's row and the policy where they are new."""
    try:
        if schedule.scheduler.pk is None:
            schedule.scheduler.save()
        # Not save(): its own look for the name would say the same a moment too early.
        Schedule.objects.bulk_create([schedule])
    except IntegrityError:
        raise _name_taken(schedule.name) from None
    if policy:
        Policy.objects.bulk_create([Policy(schedule=schedule, **policy)])


def _gone(schedule: PeriodicTask) -> ScheduleError:
    return ScheduleError(f"schedule {schedule.name!r} has been removed meanwhile.")


def _is_of_code(name: str) -> bool:
    return Policy.objects.filter(schedule__name=name, managed_by=ManagedBy.CODE).exists()


def _name_taken(name: str, of_code: bool = False) -> ScheduleError:
    where, remedy = (
        (" in CELERY_BEAT_SCHEDULE", "") if of_code else ("", ", or remove that one first")
    )
    return ScheduleError(
        f"there is a schedule {name!r} already{where}: choose another name{remedy}."
    )
