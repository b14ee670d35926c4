"""Finds or makes the django-celery-beat row of a rule; `rules` goes the other way."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from django.db import connection, models
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    SolarSchedule,
)

from scheduling import recurrence
from scheduling.errors import ScheduleError
from scheduling.recurrence import Rule
from scheduling.schedules.rules import is_too_short

CRON_FIELDS = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
PERIODS = (
    (IntervalSchedule.DAYS, timedelta(days=1)),
    (IntervalSchedule.HOURS, timedelta(hours=1)),
    (IntervalSchedule.MINUTES, timedelta(minutes=1)),
    (IntervalSchedule.SECONDS, timedelta(seconds=1)),
    (IntervalSchedule.MICROSECONDS, timedelta(microseconds=1)),
)
MOST_PERIODS = 2**31 - 1
DEGREE = Decimal("0.000001")  # the precision of a place's columns

HOLD = """
SELECT scheduling_hold_rules(%s::integer[], %s::integer[], %s::integer[], %s::integer[]),
    scheduling_hold_calendars(%s::bigint[])
"""


@dataclass(frozen=True)
class Cron:
    """At the times of a cron expression, `m h dom mon dow`, in an IANA time zone."""

    expression: str
    timezone: str


@dataclass(frozen=True)
class Every:
    """Every `step`, counted from when the schedule is made or from its start."""

    step: timedelta


@dataclass(frozen=True)
class Once:
    """At one instant."""

    at: datetime


@dataclass(frozen=True)
class Solar:
    """At an event of the sun, at a place in degrees."""

    event: str
    latitude: float
    longitude: float


def column_of(rule: Cron | Every | Once | Solar) -> str:
    """Return which of a schedule's columns names the row of such a rule."""
    return {Cron: "crontab", Every: "interval", Once: "clocked", Solar: "solar"}[type(rule)]


def rule_of_row(rule: Cron | Every | Solar, anchor: datetime) -> Rule:
    """Return the rule that the row of `rule` will have; an interval counts from `anchor`.

    Raises:
        RecurrenceError, ScheduleError: as `row_of` does.
    """
    if isinstance(rule, Cron):
        _cron_fields(rule)
        return recurrence.cron(rule.expression, rule.timezone)
    if isinstance(rule, Every):
        _period(rule.step)
        return recurrence.every(rule.step, anchor)
    place = _place(rule)
    return recurrence.solar(rule.event, place["latitude"], place["longitude"])


def row_of(rule: Cron | Every | Once | Solar, now: datetime) -> models.Model:
    """Return the equal row that exists, or a new, unsaved row.

    Raises:
        RecurrenceError: a cron expression or a time zone that cannot be read.
        ScheduleError: a value that the row cannot keep, or an instant that has passed.
    """
    if isinstance(rule, Cron):
        return _crontab(rule)
    if isinstance(rule, Every):
        return _interval(rule.step)
    if isinstance(rule, Solar):
        return _equal_or_new(SolarSchedule, event=rule.event, **_place(rule))
    if rule.at <= now:
        raise ScheduleError(f"{rule.at.isoformat()} is in the past: give an instant to come.")
    return _equal_or_new(ClockedSchedule, clocked_time=rule.at.astimezone(UTC))


def _crontab(rule: Cron) -> models.Model:
    return _equal_or_new(CrontabSchedule, **_cron_fields(rule))


def _cron_fields(rule: Cron) -> dict[str, Any]:
    read = recurrence.cron(rule.expression, rule.timezone)
    fields = dict(zip(CRON_FIELDS, read.expression.split(), strict=True))
    for field, text in fields.items():
        if len(text) > (longest := CrontabSchedule._meta.get_field(field).max_length or 0):
            raise ScheduleError(f"the {field} {text!r} is longer than {longest} characters.")
    return {**fields, "timezone": read.tz}


def _place(rule: Solar) -> dict[str, Any]:
    """Return a place as its columns keep it."""
    degrees = {"latitude": rule.latitude, "longitude": rule.longitude}
    return {name: Decimal(str(value)).quantize(DEGREE) for name, value in degrees.items()}


def _interval(step: timedelta) -> models.Model:
    every, period = _period(step)
    return _equal_or_new(IntervalSchedule, every=every, period=period)


def _period(step: timedelta) -> tuple[int, str]:
    """Return `step` in the largest period that measures it exactly."""
    if step <= timedelta(0):
        raise ScheduleError(f"an interval must be longer than nothing, not {step}.")
    if is_too_short(step):
        seconds = f"{step.total_seconds():f}".rstrip("0")
        raise ScheduleError(
            f"an interval of {seconds} s is shorter than a second: make it a second or longer."
        )
    period, unit = next((period, unit) for period, unit in PERIODS if not step % unit)
    if step // unit > MOST_PERIODS:
        raise ScheduleError(f"an interval of {step} is too long to keep exactly: shorten it.")
    return step // unit, period


def hold(schedule: PeriodicTask, calendar_id: int | None) -> None:
    """Lock the rows of the schedule's rule and of its calendar against edits until the commit.

    Call it before writing both a schedule and its policy: the first of the two locks its plan, and
    an edit of a rule or of a calendar has locked that before it locks plans.
    """
    rules = (schedule.crontab_id, schedule.interval_id, schedule.clocked_id, schedule.solar_id)
    with connection.cursor() as cursor:
        cursor.execute(HOLD, [[pk] for pk in (*rules, calendar_id)])


def is_length(interval: IntervalSchedule, step: timedelta) -> bool:
    """Return whether the row is an interval of that length, in any unit.

    Raw SQL may have written an interval that a timedelta cannot hold.
    """
    unit = dict(PERIODS).get(interval.period)
    return unit is not None and not step % unit and step // unit == interval.every


def _equal_or_new(model: type[models.Model], **fields: Any) -> models.Model:
    row: models.Model | None = model._default_manager.filter(**fields).order_by("pk").first()
    return row or model(**fields)
