"""Rules, and the instants at which they fire.

Pure: no Django, no clock; the answers depend on the arguments alone, and on the data of time zones
and of public holidays.
Arguments are aware datetimes (NaiveInstant otherwise); returned instants are in UTC.
Ranges of instants are open at the start and closed at the end, a < t <= b, as `next_after` is
strictly after: so they split anywhere without loss or repeat. Rules are frozen, hashable values.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from .bounds import BoundedRule, bounded
from .cron import CronRule, cron
from .daysoff import WEEKDAYS, DaysOff, days_off
from .difference import Difference
from .difference import difference as _difference
from .errors import (
    InvalidCron,
    InvalidInterval,
    InvalidSolar,
    MissingDependency,
    NaiveInstant,
    NeverFires,
    RecurrenceError,
    UnknownCountry,
    UnknownTimezone,
)
from .interval import SHORTEST, ClockedRule, IntervalRule, every, once
from .publicholidays import check_country, countries, country_names, holidays_version
from .rule import Occurrence, Rule, as_utc
from .solar import SolarRule, solar
from .wallclock import first_instant as _first_instant
from .wallclock import tzdata_version
from .workdays import ExcludedDay, on_working_days

__all__ = [
    "SHORTEST",
    "VERSION",
    "WEEKDAYS",
    "BoundedRule",
    "ClockedRule",
    "CronRule",
    "DaysOff",
    "Difference",
    "ExcludedDay",
    "IntervalRule",
    "InvalidCron",
    "InvalidInterval",
    "InvalidSolar",
    "MissingDependency",
    "NaiveInstant",
    "NeverFires",
    "Occurrence",
    "RecurrenceError",
    "Rule",
    "SolarRule",
    "UnknownCountry",
    "UnknownTimezone",
    "bounded",
    "check",
    "check_country",
    "count_between",
    "countries",
    "country_names",
    "cron",
    "day_off",
    "days_off",
    "describe",
    "difference",
    "every",
    "fires_between",
    "first_instant",
    "holidays_version",
    "latest_between",
    "next_after",
    "occurrences_between",
    "on_working_days",
    "once",
    "preview",
    "solar",
    "tzdata_version",
    "working",
]

# Raise it when any rule's occurrences change, so that stored plans can be made anew.
VERSION = "2"

_HORIZON = timedelta(days=3653)  # ten years


def next_after(rule: Rule, instant: datetime) -> datetime | None:
    """The first occurrence strictly after `instant`; None after the last one."""
    return rule.next_after(as_utc(instant))


def occurrences_between(rule: Rule, a: datetime, b: datetime) -> Iterator[datetime]:
    """The occurrences with a < t <= b, ascending and lazily."""
    return rule.occurrences_between(as_utc(a), as_utc(b))


def count_between(rule: Rule, a: datetime, b: datetime) -> int:
    """How many occurrences have a < t <= b: by arithmetic for intervals and cron."""
    return rule.count_between(as_utc(a), as_utc(b))


def fires_between(rule: Rule, a: datetime, b: datetime) -> bool:
    """Whether there is an occurrence with a < t <= b, without a look beyond b."""
    return rule.fires_between(as_utc(a), as_utc(b))


def latest_between(rule: Rule, a: datetime, b: datetime) -> datetime | None:
    """The last occurrence with a < t <= b, found from b backwards."""
    return rule.latest_between(as_utc(a), as_utc(b))


def preview(rule: Rule, after: datetime, n: int) -> list[Occurrence]:
    """The next n occurrences after an instant, each marked with the effect of clock changes."""
    previous, occurrences = as_utc(after), list[Occurrence]()
    while len(occurrences) < n and (due := rule.next_after(previous)) is not None:
        occurrences.append(rule.marked(previous, due))
        previous = due
    return occurrences


def first_instant(wall: datetime, zone: ZoneInfo) -> datetime:
    """The first instant at which the clocks of a zone show the naive `wall`, or jump over it."""
    return _first_instant(zone, wall).replace(tzinfo=UTC)


def working(rule: Rule) -> Rule:
    """The rule without the occurrences that its calendar leaves out; itself without a calendar."""
    return rule.working()


def day_off(rule: Rule, due: datetime) -> str:
    """Why a calendar leaves out the rule's occurrence at `due`, or ""."""
    return rule.day_off(as_utc(due))


def check(rule: Rule, after: datetime) -> None:
    """Refuse a rule with no occurrence in the ten years after an instant: raises NeverFires.

    Occurrences that a calendar leaves out do not count.
    """
    start = as_utc(after)
    for what in dict.fromkeys((rule, rule.working())):
        if not what.fires_between(start, start + _HORIZON):
            raise NeverFires(
                f"{what.describe()!r} does not fire within ten years of {start.date()}: "
                f"{what.remedy()}"
            )


def difference(old: Rule | None, new: Rule | None, a: datetime, b: datetime) -> Difference:
    """Which occurrences with a < t <= b come, go and stay where `new` takes the place of `old`."""
    return _difference(old, new, as_utc(a), as_utc(b))


def describe(rule: Rule) -> str:
    """A short text for people: "0 9 * * 1-5 (Europe/Berlin)", "every 5 minutes"."""
    return rule.describe()
