"""Finds the schedules that an edit of a shared rule or calendar would silence for ever.

Schedules that share a rule or a calendar are of few shapes: most have no start, no end, no other
calendar. So each shape is looked at once, however many schedules have it.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from django.db import connection, models
from django_celery_beat.models import PeriodicTask

from scheduling import recurrence
from scheduling.errors import ScheduleError
from scheduling.models import Calendar
from scheduling.recurrence import DaysOff
from scheduling.schedules.rules import (
    RULE_COLUMNS,
    RULE_JOINS,
    RuleFields,
    build_rule,
    fields_of,
    with_fields,
)

# Only so many of the schedules are looked at, and only so many shapes of them, the most common
# first: half a second at worst. One beyond that which never fires shows as such, by an error of its
# plan or by its runs, which are skipped with the reason.
MOST_SCHEDULES = 20_000
MOST_SHAPES = 200
NAMES_SHOWN = 5
# Fields of a rule that are not of its own row.
NOT_OF_THE_RULE = ("start_time", "expires", "days_off", "excluded_day")

# Anchors tell intervals apart: every seven days may mean every Sunday.
SHAPES = f"""
WITH users AS (
    SELECT t.id, t.name, t.crontab_id, t.interval_id, t.clocked_id, t.solar_id, t.start_time,
        t.expires, y.calendar_id,
        CASE WHEN y.calendar_id IS NOT NULL THEN y.excluded_day END AS excluded_day,
        CASE WHEN t.interval_id IS NOT NULL THEN COALESCE(p.anchor_at, p.plan_from) END AS anchor
      FROM django_celery_beat_periodictask t
      JOIN scheduling_plan p ON p.schedule_id = t.id
      LEFT JOIN scheduling_policy y ON y.schedule_id = t.id
     WHERE {{users}} AND t.enabled AND NOT p.done
     LIMIT {MOST_SCHEDULES}
), shapes AS (
    SELECT min(id) AS id, count(*) AS size, min(anchor) AS anchor,
        (array_agg(name ORDER BY name))[:{NAMES_SHOWN}] AS names
      FROM users
     GROUP BY crontab_id, interval_id, clocked_id, solar_id, start_time, expires, calendar_id,
        excluded_day, anchor
     ORDER BY size DESC, id LIMIT {MOST_SHAPES}
)
SELECT shape.size, shape.names, shape.anchor, {RULE_COLUMNS}
  FROM shapes shape
  JOIN django_celery_beat_periodictask t ON t.id = shape.id
  LEFT JOIN scheduling_policy y ON y.schedule_id = t.id
  {RULE_JOINS}
 ORDER BY shape.size DESC, shape.id
"""  # noqa: S608 (constants only)


class Shape(NamedTuple):
    """Schedules that fire alike: how many they are, some of their names; in SHAPES' order."""

    size: int
    names: list[str]
    anchor: datetime | None
    fields: RuleFields


def check_rule(column: str, row: models.Model, now: datetime) -> None:
    """Refuse an edited rule, not saved yet, with which schedules would never fire again.

    Args:
        column: the column of PeriodicTask that names such a row, such as "crontab".

    Raises:
        ScheduleError: schedules that fire would not do so any more, or not within ten years; the
            message names some of them.
    """
    if row.pk is None:
        return
    new = fields_of(PeriodicTask(**{column: row}))
    silenced = [
        shape
        for shape in _shapes(f"t.{column}_id = %s", row.pk)
        if not _fires(_with_rule(shape.fields, new), now, now)
        and _fires(shape.fields, shape.anchor, now)
    ]
    _refuse(silenced, "give them another rule, or disable them, first")


def check_calendar(calendar: Calendar, days_off: DaysOff, now: datetime) -> None:
    """Likewise for a calendar that is to have these days off."""
    silenced = [
        shape
        for shape in _shapes("y.calendar_id = %s", calendar.pk)
        if not _fires(shape.fields._replace(days_off=days_off), shape.anchor, now)
        and _fires(shape.fields, shape.anchor, now)
    ]
    _refuse(silenced, "give them another calendar, or disable them, first")


def _shapes(users: str, pk: Any) -> list[Shape]:
    with connection.cursor() as cursor:
        cursor.execute(SHAPES.format(users=users), [pk])
        return with_fields(Shape, cursor.fetchall())


def _with_rule(fields: RuleFields, new: RuleFields) -> RuleFields:
    """Return a schedule's fields with another rule, and with limits and a calendar of its own."""
    return new._replace(**{name: getattr(fields, name) for name in NOT_OF_THE_RULE})


def _fires(fields: RuleFields, anchor: datetime | None, now: datetime) -> bool:
    try:
        recurrence.check(build_rule(fields, anchor), now)
    except recurrence.RecurrenceError:
        return False
    return True


def _refuse(silenced: Sequence[Shape], remedy: str) -> None:
    count = sum(shape.size for shape in silenced)
    if not count:
        return
    names = sorted(name for shape in silenced for name in shape.names)[:NAMES_SHOWN]
    more = f" and {count - len(names):,} more" if count > len(names) else ""
    who = "a schedule" if count == 1 else f"{count:,} schedules"
    raise ScheduleError(
        f"{who} would never fire again, or not within ten years: "
        f"{', '.join(map(repr, names))}{more}. To change this, {remedy}."
    )
