"""Add a schedule, find it by its name, and remove it."""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Unpack

from django.db import IntegrityError, transaction
from django_celery_beat.models import PeriodicTask

from scheduling import clock, recurrence
from scheduling.errors import ScheduleError
from scheduling.logs import event
from scheduling.models import ManagedBy, Policy, Priority, Schedule
from scheduling.near_names import did_you_mean
from scheduling.registry import check_call, encode
from scheduling.schedules import policies
from scheduling.schedules.destinations import refuse_without_queue
from scheduling.schedules.policies import PolicyOptions, check_columns
from scheduling.schedules.rule_rows import Cron, Every, Once, column_of, row_of
from scheduling.schedules.rules import rule_of
from scheduling.schedules.standing import removed_meanwhile, with_rows

logger = logging.getLogger(__name__)

NAMES_COMPARED = 5000


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
        raise ScheduleError(f"the name {name!r} is blank: give a readable one.")
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


def named(name: str) -> Schedule:
    """Return the schedule of that name.

    Raises:
        ScheduleError: it does not exist; the message has the nearest names.
    """
    schedule: Schedule | None = with_rows().filter(name=name).first()
    if schedule is None:
        names = Schedule.objects.values_list("name", flat=True)[:NAMES_COMPARED]
        hint = did_you_mean(name, names, "`schedule list` shows all.")
        raise ScheduleError(f"schedule {name!r} does not exist: {hint}")
    return schedule


def remove(schedule: PeriodicTask, *, by: str = "") -> None:
    """Delete the schedule; its runs stay, and waiting ones still run.

    Raises:
        ScheduleError: it belongs to code, or is gone already.
    """
    others = Schedule.objects.exclude(policy__managed_by=ManagedBy.CODE)
    deleted, _ = others.filter(pk=schedule.pk).delete()
    if not deleted:
        refuse_if_code(schedule)
        raise removed_meanwhile(schedule)
    event(logger, "schedule_removed", schedule=schedule.pk, called=schedule.name, by=by)


def refuse_if_code(schedule: PeriodicTask) -> None:
    """Raise ScheduleError if only code may change the schedule."""
    if Policy.objects.filter(schedule=schedule, managed_by=ManagedBy.CODE).exists():
        raise ScheduleError(
            f"schedule {schedule.name!r} is managed by code: change CELERY_BEAT_SCHEDULE in the"
            " settings, then run `manage.py schedule sync`. Here it can only be paused and resumed."
        )


def _insert(schedule: Schedule, policy: Mapping[str, Any]) -> None:
    """Save a checked schedule, with its rule's row and its policy if these are new."""
    try:
        if schedule.scheduler.pk is None:
            schedule.scheduler.save()
        # Not save(): its own look for the name would say the same a moment too early.
        Schedule.objects.bulk_create([schedule])
    except IntegrityError:
        raise _name_taken(schedule.name) from None
    if policy:
        Policy.objects.bulk_create([Policy(schedule=schedule, **policy)])


def _is_of_code(name: str) -> bool:
    return Policy.objects.filter(schedule__name=name, managed_by=ManagedBy.CODE).exists()


def _name_taken(name: str, of_code: bool = False) -> ScheduleError:
    where, remedy = (
        (" in CELERY_BEAT_SCHEDULE", "") if of_code else ("", ", or remove that one first")
    )
    return ScheduleError(
        f"there is a schedule {name!r} already{where}: choose another name{remedy}."
    )
