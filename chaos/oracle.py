"""An independent oracle of rules: looks at every minute, and computes by arithmetic.

Nothing here is the scheduler's code. Crontab fields are expanded by Celery's parser, time zones are
Python's, the sun is ephem's. A plan's few minutes are short enough to try each of them; changes of
clocks are not modelled (tests/scheduling/recurrence/test_dst.py does that).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import ephem
from celery.schedules import crontab

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True)
class Every:
    """An interval that counts from `anchor`; whether that is its first instant, too."""

    seconds: int
    anchor: datetime
    with_anchor: bool


@dataclass(frozen=True)
class Cron:
    """Fields in Celery's dialect, on the clocks of a zone."""

    minute: str
    hour: str
    day_of_week: str
    zone: str


@dataclass(frozen=True)
class Once:
    """A single instant."""

    at: datetime


@dataclass(frozen=True)
class Noon:
    """The sun's highest point at a longitude; known to a second, like all of ephem's answers."""

    longitude: float


Rule = Every | Cron | Once | Noon


@dataclass(frozen=True)
class Off:
    """Days off, by the clocks of a zone, as ISO dates; and the treatment of occurrences on them.

    An occurrence is skipped, or moves to the previous or next working day, if that has nothing
    of its own.
    """

    zone: str
    dates: list[str]
    treatment: str


def is_off(off: Off, instant: datetime) -> bool:
    """Return whether an instant is on a day off whose occurrences are skipped."""
    day = instant.astimezone(ZoneInfo(off.zone)).date()
    return off.treatment == "skip" and day.isoformat() in off.dates


def slack(rule: Rule) -> timedelta:
    """Return how far an instant of the scheduler's may lie from the oracle's."""
    return timedelta(seconds=1) if isinstance(rule, Noon) else timedelta(0)


def instants(rule: Rule, after: datetime, upto: datetime, off: Off | None = None) -> list[datetime]:
    """Return all instants with after < t <= upto, ascending, after days off have moved them.

    Skipped instants are among them.
    """
    if off is not None and off.treatment != "skip":
        return [instant for instant in _moved(rule, off, after, upto) if after < instant <= upto]
    match rule:
        case Every():
            found = _every(rule, upto)
        case Cron():
            found = _cron(rule, after, upto)
        case Once():
            found = iter([rule.at])
        case Noon():
            found = _noons(rule, after, upto)
    return [instant for instant in found if after < instant <= upto]


def _moved(rule: Rule, off: Off, after: datetime, upto: datetime) -> Iterator[datetime]:
    """Yield the occurrences of each working day: its own, or else those of its neighbour."""
    zone = ZoneInfo(off.zone)
    day = after.astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    step = DAY if off.treatment == "previous" else -DAY
    while day.replace(tzinfo=zone) <= upto:
        found, other = _on(rule, day, zone), day + step
        while not found and other.date().isoformat() in off.dates:
            found, other = [each - (other - day) for each in _on(rule, other, zone)], other + step
        if day.date().isoformat() not in off.dates:
            yield from found
        day += DAY


def _on(rule: Rule, day: datetime, zone: ZoneInfo) -> list[datetime]:
    begin = day.replace(tzinfo=zone).astimezone(UTC)
    return instants(rule, begin - MICROSECOND, begin + DAY - MICROSECOND)


def _every(rule: Every, upto: datetime) -> Iterator[datetime]:
    step = timedelta(seconds=rule.seconds)
    instant = rule.anchor if rule.with_anchor else rule.anchor + step
    while instant <= upto:
        yield instant
        instant += step


def _cron(rule: Cron, after: datetime, upto: datetime) -> Iterator[datetime]:
    fields: Any = crontab(minute=rule.minute, hour=rule.hour, day_of_week=rule.day_of_week)
    zone = ZoneInfo(rule.zone)
    instant = after.replace(second=0, microsecond=0)
    while instant <= upto:
        shown = instant.astimezone(zone)
        if (
            shown.minute in fields.minute
            and shown.hour in fields.hour
            and shown.isoweekday() % 7 in fields.day_of_week
        ):
            yield instant
        instant += MINUTE


def _noons(rule: Noon, after: datetime, upto: datetime) -> Iterator[datetime]:
    begin = after - DAY
    while begin < upto:
        instant = _noon_after(begin, rule.longitude)
        yield instant
        begin = instant + DAY / 2


def _noon_after(instant: datetime, longitude: float) -> datetime:
    sky: Any = ephem
    observer = sky.Observer()
    observer.lat, observer.lon, observer.pressure = "0", str(longitude), 0
    noon: datetime = observer.next_transit(sky.Sun(), start=instant.replace(tzinfo=None)).datetime()
    return noon.replace(microsecond=0, tzinfo=UTC)


def noon_longitude(at: datetime) -> float:
    """Return a longitude, to a millionth of a degree, where the sun is highest at about `at`."""
    greenwich = _noon_after(at - DAY / 2, 0)
    degrees = (greenwich - at).total_seconds() / 240
    return round((degrees + 180) % 360 - 180, 6)
