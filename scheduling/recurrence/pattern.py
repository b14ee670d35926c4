"""Cron's numbers as wall-clock times: naive local minutes, as if clocks never changed."""

from bisect import bisect_left, bisect_right
from calendar import monthrange
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache

from .wallclock import FIRST, LAST

month_shape = lru_cache(maxsize=4096)(monthrange)


@dataclass(frozen=True, slots=True)
class WallPattern:
    """A day matches if its month, its number and its weekday (Sunday = 0) all do."""

    times: tuple[int, ...]  # minutes since midnight, ascending
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]

    def next(self, wall: datetime) -> datetime | None:
        """The first match after `wall`."""
        year, month, day = wall.year, wall.month, wall.day
        days = self._days(year, month)
        if day in days:
            later = bisect_right(self.times, _minute(wall))
            if later < len(self.times):
                return _wall(year, month, day, self.times[later])
        while year <= LAST.year:
            following = bisect_right(days, day)
            if following < len(days):
                return _wall(year, month, days[following], self.times[0])
            year, month, day = (year, month + 1, 0) if month < 12 else (year + 1, 1, 0)
            days = self._days(year, month)
        return None

    def latest(self, wall: datetime) -> datetime | None:
        """The last match at or before `wall`."""
        year, month, day = wall.year, wall.month, wall.day
        days = self._days(year, month)
        if day in days:
            upto = bisect_right(self.times, _minute(wall))
            if upto:
                return _wall(year, month, day, self.times[upto - 1])
        while year >= FIRST.year:
            earlier = bisect_left(days, day)
            if earlier:
                return _wall(year, month, days[earlier - 1], self.times[-1])
            year, month, day = (year, month - 1, 32) if month > 1 else (year - 1, 12, 32)
            days = self._days(year, month)
        return None

    def count(self, after: datetime, upto: datetime) -> int:
        """How many matches have after < wall <= upto: matching days times times of day."""
        days = 0
        year, month = after.year, after.month
        while (year, month) < (upto.year, upto.month):
            days += len(self._days(year, month))
            year, month = (year, month + 1) if month < 12 else (year + 1, 1)
        return days * len(self.times) + self._in_month_upto(upto) - self._in_month_upto(after)

    def on(self, day: date) -> bool:
        """Whether the day matches."""
        return (
            day.month in self.months
            and day.day in self.days
            and day.isoweekday() % 7 in self.weekdays
        )

    def _in_month_upto(self, wall: datetime) -> int:
        days = self._days(wall.year, wall.month)
        whole = bisect_left(days, wall.day) * len(self.times)
        return whole + (bisect_right(self.times, _minute(wall)) if wall.day in days else 0)

    def _days(self, year: int, month: int) -> tuple[int, ...]:
        if month not in self.months:
            return ()
        return _matching_days(self.days, self.weekdays, *month_shape(year, month))


@lru_cache(maxsize=4096)
def _matching_days(
    days: frozenset[int], weekdays: frozenset[int], first: int, length: int
) -> tuple[int, ...]:
    """The matching days of a month of that length whose 1st is weekday `first` (Monday = 0)."""
    return tuple(
        day for day in range(1, length + 1) if day in days and (first + day) % 7 in weekdays
    )


@lru_cache(maxsize=1024)
def times_of_day(minutes: frozenset[int], hours: frozenset[int]) -> tuple[int, ...]:
    """Minutes since midnight; shared by the rules that have the same ones."""
    return tuple(hour * 60 + minute for hour in sorted(hours) for minute in sorted(minutes))


def _minute(wall: datetime) -> int:
    return wall.hour * 60 + wall.minute


def _wall(year: int, month: int, day: int, minute: int) -> datetime:
    return datetime(year, month, day, minute // 60, minute % 60)  # noqa: DTZ001 (a wall clock)
