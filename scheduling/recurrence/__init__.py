"""When schedules fire: rules, and the instants they yield.

Pure: no Django, no clock; the answers depend on the arguments and the time zone database alone.
Instants that come in are aware datetimes (NaiveInstant otherwise), those that go out are in UTC.
Ranges of instants are open at the start and closed at the end, a < t <= b, as `next_after` is
strictly after: so they split anywhere without loss or repeat. Rules are frozen, hashable values.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta

from .bounds import BoundedRule, bounded
from .cron import CronRule, cron
from .errors import (
    InvalidCron,
    InvalidInterval,
    InvalidSolar,
    MissingDependency,
    NaiveInstant,
    NeverFires,
    RecurrenceError,
    UnknownTimezone,
)
from .interval import ClockedRule, IntervalRule, every, once
from .rule import Occurrence, Rule, as_utc
from .solar import SolarRule, solar
from .wallclock import tzdata_version

__all__ = [
    "VERSION",
    "BoundedRule",
    "ClockedRule",
    "CronRule",
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
    "UnknownTimezone",
    "bounded",
    "check",
    "count_between",
    "cron",
    "describe",
    "every",
    "latest_between",
    "next_after",
    "occurrences_between",
    "once",
    "preview",
    "solar",
    "tzdata_version",
]

# Raise it when any rule's occurrences change, so that stored plans can be made anew.
VERSION = "1"

_HORIZON = timedelta(days=3653)  # ten years


def next_after(rule: Rule, instant: datetime) -> datetime | None:
    """The first occurrence strictly after `instant`; None if there is no more."""
    return rule.next_after(as_utc(instant))


def occurrences_between(rule: Rule, a: datetime, b: datetime) -> Iterator[datetime]:
    """The occurrences with a < t <= b, ascending and lazily."""
    return rule.occurrences_between(as_utc(a), as_utc(b))


def count_between(rule: Rule, a: datetime, b: datetime) -> int:
    """How many occurrences have a < t <= b: by arithmetic for intervals and cron."""
    return rule.count_between(as_utc(a), as_utc(b))


def latest_between(rule: Rule, a: datetime, b: datetime) -> datetime | None:
    """The last occurrence with a < t <= b, found from b backwards."""
    return rule.latest_between(as_utc(a), as_utc(b))


def preview(rule: Rule, after: datetime, n: int) -> list[Occurrence]:
    """The next n occurrences after an instant, each marked with what clock changes did to it."""
    previous, occurrences = as_utc(after), list[Occurrence]()
    while len(occurrences) < n and (due := rule.next_after(previous)) is not None:
        occurrences.append(rule.marked(previous, due))
        previous = due
    return occurrences


def check(rule: Rule, after: datetime) -> None:
    """Refuse a rule with no occurrence in the ten years after an instant: raises NeverFires."""
    start = as_utc(after)
    due = rule.next_after(start)
    if due is None or due - start > _HORIZON:
        raise NeverFires(
            f"{rule.describe()!r} does not fire within ten years of {start.date()}: {rule.remedy()}"
        )


def describe(rule: Rule) -> str:
    """A short text for people: "0 9 * * 1-5 (Europe/Berlin)", "every 5 minutes"."""
    return rule.describe()
