"""Days off: days of the week, public holidays and single dates on which nothing should run."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from hashlib import blake2b
from typing import Literal

from .errors import NeverFires, RecurrenceError
from .publicholidays import public_holidays

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

Step = Literal[-1, 1]

_DAY = timedelta(days=1)
_SEARCH_DAYS = 3653  # ten years


@dataclass(frozen=True, slots=True)
class DaysOff:
    """Built by `days_off()`. Its days and their names are its identity."""

    identity: str
    # Changes if its days may change, but not with their names.
    fingerprint: str = field(compare=False, repr=False)
    name: str = field(compare=False)
    weekdays: frozenset[int] = field(compare=False)  # Monday = 0
    dates: Mapping[date, str] = field(compare=False)  # with their reasons
    country: str = field(compare=False)
    subdivision: str = field(compare=False)

    def why(self, day: date) -> str:
        """Why a day is off: its reason, the holiday's name or the weekday's; "" for working days.

        Raises UnknownCountry, MissingDependency.
        """
        reason = self.dates.get(day)
        if reason is not None:
            return reason or "excluded date"
        if self.country and (name := self._holidays(day.year).get(day)):
            return name
        weekday = day.weekday()
        return WEEKDAYS[weekday] if weekday in self.weekdays else ""

    def is_off(self, day: date) -> bool:
        return (
            day.weekday() in self.weekdays
            or day in self.dates
            or (bool(self.country) and day in self._holidays(day.year))
        )

    def explain(self, day: date) -> str:
        """A day off as a person should see it: "calendar 'DE': 2026-12-25 Christmas Day"."""
        return f"calendar {self.name!r}: {day} {self.why(day)}"

    def days_of(self, year: int) -> Iterator[tuple[date, str]]:
        """The holidays and the dates off in a year, with why; days of the week are not among them.

        Raises UnknownCountry, MissingDependency.
        """
        found = dict(self._holidays(year)) if self.country else {}
        found |= {day: reason for day, reason in self.dates.items() if day.year == year}
        for day in sorted(found):
            yield day, self.why(day)

    def working_day(self, day: date, step: Step) -> date:
        """`day` if it is a working day, or else the nearest one before (-1) or after it (1)."""
        for _ in range(_SEARCH_DAYS):
            if not self.is_off(day):
                return day
            day += step * _DAY
        raise NeverFires(
            f"calendar {self.name!r} has no working day in the ten years up to {day}: "
            "take some of its dates out"
        )

    def run_of(self, day: date, step: Step) -> Iterator[date]:
        """The days off next to a working day, the nearest first, up to the next working day."""
        following = day + step * _DAY
        for _ in range(_SEARCH_DAYS):
            if not self.is_off(following):
                return
            yield following
            following += step * _DAY

    def _holidays(self, year: int) -> Mapping[date, str]:
        return public_holidays(self.country, self.subdivision, year)


def days_off(
    name: str,
    *,
    weekdays: Iterable[int] = (),
    dates: Mapping[date, str] | None = None,
    country: str = "",
    subdivision: str = "",
) -> DaysOff:
    """The days off of a calendar: weekdays (Monday = 0), dates with reasons, a country's holidays.

    Whether the country is known shows when its holidays are asked for. Raises RecurrenceError for
    weekdays that leave no working day.
    """
    numbers = frozenset(weekdays)
    if not numbers <= frozenset(range(7)):
        raise RecurrenceError(f"weekdays {sorted(numbers)} are not from 0 (Monday) to 6 (Sunday)")
    if len(numbers) == 7:
        raise RecurrenceError(
            f"calendar {name!r} excludes all seven weekdays: nothing could ever run; leave one out"
        )
    days = dict(sorted((dates or {}).items()))
    fingerprint = _digest(sorted(numbers), country, subdivision, *days)
    identity = _digest(fingerprint, name, *days.values())
    return DaysOff(identity, fingerprint, name, numbers, days, country, subdivision)


def _digest(*parts: object) -> str:
    return blake2b("\0".join(map(str, parts)).encode("utf-8", "replace"), digest_size=8).hexdigest()
