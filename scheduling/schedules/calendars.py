"""Calendars: reads their days off, adds and removes them."""

import logging
from collections.abc import Collection, Iterable, Mapping
from datetime import date

from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction
from django.db.models import ProtectedError

from scheduling import recurrence
from scheduling.errors import CalendarError
from scheduling.logs import event
from scheduling.models import Calendar, ExcludedDate
from scheduling.near_names import did_you_mean
from scheduling.postgres.sql import clean
from scheduling.recurrence import DaysOff

logger = logging.getLogger(__name__)

# Names that a message lists before it says how many more there are.
NAMES_SHOWN = 5
# Calendars kept in memory; beyond that they are read again.
KEPT = 1000

VERSIONS = "SELECT id, version FROM scheduling_calendar WHERE id = ANY(%s)"

# Dates that Python cannot hold, or that no rule reaches, are not read. An array of arrays, which
# raw SQL can write, is read as one array.
CONTENT = """
SELECT c.id, c.version, c.name, ARRAY(SELECT unnest(c.weekdays)), c.country, c.subdivision,
    d.dates, d.reasons
  FROM scheduling_calendar c
  CROSS JOIN LATERAL (
    SELECT array_agg(e.date ORDER BY e.date) AS dates,
        array_agg(e.reason ORDER BY e.date) AS reasons
      FROM scheduling_excludeddate e
     WHERE e.calendar_id = c.id AND e.date BETWEEN '1900-01-01' AND '2200-01-01') d
 WHERE c.id = ANY(%s)
"""

_kept: dict[tuple[int, int], DaysOff] = {}


def days_off_by_id(ids: Collection[int]) -> dict[int, DaysOff]:
    """Return the days off of calendars, from memory until a calendar changes."""
    if not ids:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(VERSIONS, [list(ids)])
        versions = cursor.fetchall()
        found = {key[0]: kept for key in versions if (kept := _kept.get(key))}
        if new := [pk for pk, _ in versions if pk not in found]:
            cursor.execute(CONTENT, [new])
            for pk, version, *content in cursor.fetchall():
                found[pk] = _keep(pk, version, _read(*content))
    return found


def days_off_of_all() -> dict[int, DaysOff]:
    """Return the days off of every calendar."""
    return days_off_by_id(list(Calendar.objects.values_list("pk", flat=True)))


def forget() -> None:
    """Read each calendar again when it is next asked for."""
    _kept.clear()


def days_off_of(calendar: Calendar) -> DaysOff:
    """Return the days off of a calendar that the ORM read."""
    kept = _kept.get((calendar.pk, calendar.version))
    return kept or days_off_by_id([calendar.pk])[calendar.pk]


def days_off_as(calendar: Calendar, dates: Mapping[date, str] | None = None) -> DaysOff:
    """Return the days off of a calendar as its form has it; by default with the dates it has.

    Raises:
        RecurrenceError: weekdays that leave no working day.
    """
    if dates is None:
        dates = days_off_of(calendar).dates
    return recurrence.days_off(
        calendar.name,
        weekdays=calendar.weekdays,
        dates=dates,
        country=calendar.country,
        subdivision=calendar.subdivision,
    )


def add(
    name: str,
    *,
    by: str,
    weekdays: Iterable[int] = (),
    country: str = "",
    subdivision: str = "",
    dates: Mapping[date, str] | None = None,
    description: str = "",
) -> Calendar:
    """Make a calendar; `weekdays` count from Monday = 0, `dates` are single days with reasons.

    Raises:
        CalendarError: the name is taken, the country is unknown, or another value is out of range.
    """
    calendar = Calendar(
        name=name,
        description=description,
        weekdays=sorted(set(weekdays)),
        country=country.upper(),
        subdivision=subdivision,
    )
    days = sorted((dates or {}).items())
    for text in (name, description, country, subdivision, *(reason for _, reason in days)):
        if clean(text) != text:
            raise CalendarError(f"{text!r} has characters that no text can hold.")
    rows = [ExcludedDate(calendar=calendar, date=day, reason=reason) for day, reason in days]
    if Calendar.objects.filter(name=name).exists():
        raise CalendarError(
            f"there is a calendar {name!r} already: choose another name, or remove that one first."
        )
    if not (calendar.weekdays or calendar.country or rows):
        raise CalendarError(f"calendar {name!r} has no day off: give weekdays, a country or dates.")
    try:
        calendar.full_clean(validate_unique=False)
        for row in rows:
            row.clean_fields(exclude={"calendar"})
    except ValidationError as error:
        field, messages = next(iter(error.message_dict.items()))
        where = "" if field == "__all__" else f"{field}: "
        raise CalendarError(f"{where}{' '.join(messages)}") from None
    try:
        with transaction.atomic():
            calendar.save(force_insert=True)
            ExcludedDate.objects.bulk_create(rows)
    except IntegrityError:
        raise CalendarError(f"there is a calendar {name!r} already.") from None
    event(logger, "calendar_added", calendar=calendar.pk, called=name, by=by)
    return calendar


def remove(calendar: Calendar, *, by: str) -> None:
    """Delete a calendar that no schedule follows.

    Raises:
        CalendarError: schedules follow it; the message names them.
    """
    try:
        calendar.delete()
    except (ProtectedError, IntegrityError):
        raise CalendarError(f"calendar {calendar.name!r} {used_by(calendar)}") from None
    event(logger, "calendar_removed", calendar=calendar.pk, called=calendar.name, by=by)


def used_by(calendar: Calendar) -> str:
    """Return a text that names the schedules that follow a calendar."""
    users = calendar.policies.order_by("schedule__name")
    names = list(users.values_list("schedule__name", flat=True)[: NAMES_SHOWN + 1])
    shown = ", ".join(map(repr, names[:NAMES_SHOWN]))
    more = f" and {users.count() - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"is followed by the schedules {shown}{more}: give those another one first."


def named(name: str) -> Calendar:
    """Return the calendar of that name.

    Raises:
        CalendarError: it does not exist; the message has the nearest names.
    """
    calendar = Calendar.objects.filter(name=name).first()
    if calendar is None:
        names = Calendar.objects.order_by("name").values_list("name", flat=True)[:1000]
        hint = did_you_mean(name, names, "`calendar list` shows all.")
        raise CalendarError(f"calendar {name!r} does not exist: {hint}")
    return calendar


def _read(
    name: str,
    weekdays: list[int],
    country: str,
    subdivision: str,
    dates: list[date] | None,
    reasons: list[str] | None,
) -> DaysOff:
    return recurrence.days_off(
        name,
        weekdays=weekdays,
        dates=dict(zip(dates or (), reasons or (), strict=True)),
        country=country,
        subdivision=subdivision,
    )


def _keep(pk: int, version: int, days_off: DaysOff) -> DaysOff:
    if len(_kept) >= KEPT:
        _kept.clear()
    _kept[pk, version] = days_off
    return days_off
