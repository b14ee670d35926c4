"""Policies as users ask for them: checks their values and writes them."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, TypedDict

from django.core.exceptions import ValidationError
from django.db import models
from django_celery_beat.models import PeriodicTask

from scheduling.errors import CalendarError, ScheduleError
from scheduling.models import Calendar, Policy
from scheduling.near_names import did_you_mean
from scheduling.postgres.sql import clean
from scheduling.schedules import calendars


class PolicyOptions(TypedDict, total=False):
    """How a schedule is to be treated; see the fields of Policy. `calendar` is one's name."""

    catch_up: str
    catch_up_window: timedelta | None
    overlap: str
    spread: timedelta
    max_attempts: int | None
    deadline_after: timedelta | None
    calendar: str | None
    excluded_day: str
    pause_after_failures: int | None
    owner: str


POLICIES = tuple(PolicyOptions.__annotations__)


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of Policy that `options` ask for, as they are kept.

    Raises:
        ScheduleError: an unknown option, an impossible value, or an unknown calendar.
    """
    for name in options:
        if name not in POLICIES:
            raise ScheduleError(
                f"{name!r} is not a policy: "
                + did_you_mean(name, POLICIES, f"there are {', '.join(POLICIES)}.")
            )
    columns = dict(options)
    if columns.get("calendar") is not None:
        columns["calendar"] = _calendar(columns["calendar"])
    policy = Policy(**columns)
    check_columns(policy)
    return {name: getattr(policy, name) for name in columns}


def write(schedule: PeriodicTask, columns: Mapping[str, Any]) -> None:
    """Write columns of the schedule's policy, which is made if it is missing.

    Other columns that another user changes meanwhile, such as a pause, stay.
    """
    Policy.objects.bulk_create([Policy(schedule=schedule)], ignore_conflicts=True)
    Policy.objects.filter(schedule=schedule).update(**columns)


def differences(policy: Policy, columns: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the columns that differ from the policy: the present and the wanted value of each."""
    return {
        name: (getattr(policy, name), value)
        for name, value in columns.items()
        if getattr(policy, name) != value
    }


def check_columns(row: models.Model) -> None:
    """Raise ScheduleError for values that the columns of a schedule or a policy cannot take."""
    try:
        row.clean_fields(exclude={"schedule", "crontab", "interval", "clocked", "solar"})
    except ValidationError as error:
        field, messages = next(iter(error.message_dict.items()))
        raise ScheduleError(f"{field}: {' '.join(messages)}") from None
    for field, value in vars(row).items():
        if isinstance(value, str) and clean(value) != value:
            raise ScheduleError(f"{field}: {value!r} has characters that no text can hold.")


def _calendar(name: str) -> Calendar:
    try:
        return calendars.named(str(name))
    except CalendarError as error:
        raise ScheduleError(f"calendar: {error}") from None
