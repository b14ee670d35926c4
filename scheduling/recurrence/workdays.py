"""A rule that follows a calendar: skips or moves occurrences on days off.

Days are those of a zone's clocks; an occurrence is of the day that its rule names, so one whose
time the clocks jump over is of the day it was written for. With `skip`, the occurrences on days off
stay occurrences of the rule, which says of each why nothing runs for it. With `previous` and
`next` they move to the nearest working day:

- A working day on which the rule occurs anyway keeps its own occurrences, and they stand for the
  occurrences that would move there. So a rule that occurs each day, or every five minutes, loses
  its days off and gains nothing.
- A working day without its own takes those of one day off, the nearest: at the same times on the
  clocks, by the rules for times that the clocks leave out or show twice.
"""

from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Literal, get_args
from zoneinfo import ZoneInfo

from .bounds import BoundedRule
from .cron import CronRule
from .daysoff import DaysOff, Step
from .errors import RecurrenceError
from .interval import IntervalRule
from .pattern import WallPattern, month_shape
from .rule import TICK, Occurrence, Rule
from .wallclock import FIRST, LAST, first_instant, stretch_at, zone

ExcludedDay = Literal["skip", "previous", "next"]

_DAY = timedelta(days=1)
# An interval no longer than this occurs on every working day.
_DENSE = timedelta(hours=12)


def on_working_days(
    rule: Rule, days_off: DaysOff, excluded_day: ExcludedDay, timezone: str
) -> Rule:
    """`rule` with its occurrences on days off treated as `excluded_day` says.

    `timezone` is where the days of a rule without a zone of its own begin and end. A rule within
    limits keeps them: they hold for where its occurrences are moved to.

    Raises RecurrenceError, UnknownTimezone.
    """
    if excluded_day not in get_args(ExcludedDay):
        raise RecurrenceError(
            f"{excluded_day!r} is not a treatment of days off: use skip, previous or next"
        )
    if isinstance(rule, BoundedRule):
        inner = on_working_days(rule.rule, days_off, excluded_day, timezone)
        return replace(rule, rule=inner)
    tz = rule.tz if isinstance(rule, CronRule) else zone(timezone)
    if excluded_day == "skip":
        return SkippingRule(rule, _left_out(rule, days_off, tz), days_off, tz)
    step: Step = 1 if excluded_day == "next" else -1
    if isinstance(rule, CronRule):
        return _cron(rule, days_off, step)
    if isinstance(rule, IntervalRule) and rule.step <= _DENSE:
        return _left_out(rule, days_off, tz)
    return MovedRule(rule, days_off, tz, step)


@dataclass(frozen=True, slots=True)
class SkippingRule(Rule):
    """All occurrences of `rule`; it knows why nothing runs for some of them."""

    rule: Rule
    without: Rule
    days_off: DaysOff
    tz: ZoneInfo = field(compare=False, repr=False)

    def next_after(self, instant: datetime) -> datetime | None:
        return self.rule.next_after(instant)

    def count_between(self, a: datetime, b: datetime) -> int:
        return self.rule.count_between(a, b)

    def latest_between(self, a: datetime, b: datetime) -> datetime | None:
        return self.rule.latest_between(a, b)

    def working(self) -> Rule:
        return self.without

    def day_off(self, due: datetime) -> str:
        if self.without.fires_between(due - TICK, due):
            return ""
        marked = self.rule.marked(due, due)
        local = marked.missing if marked.dst == "shifted" else due.astimezone(self.tz)
        day = (local or due).date()
        return self.days_off.explain(day) if self.days_off.is_off(day) else ""

    def marked(self, previous: datetime, due: datetime) -> Occurrence:
        return replace(self.rule.marked(previous, due), day_off=self.day_off(due))

    def describe(self) -> str:
        return self.rule.describe()

    def remedy(self) -> str:
        return self.rule.remedy()


# --- Cron: the days of a pattern ------------------------------------------------------------------


def _left_out(rule: Rule, days_off: DaysOff, tz: ZoneInfo) -> Rule:
    """`rule` without its occurrences on days off."""
    if isinstance(rule, CronRule):
        return _cron(rule, days_off, None)
    return WorkingDaysRule(rule, days_off, tz)


def _cron(rule: CronRule, days_off: DaysOff, step: Step | None) -> CronRule:
    base = rule.pattern
    if base.next(FIRST) is None:  # it never fires: no calendar need be looked at to see that
        return rule
    pattern = WorkingDaysPattern(base.times, base.days, base.months, base.weekdays, days_off, step)
    return WorkingDaysCronRule(
        rule.expression,
        rule.timezone,
        rule.fixed,
        rule.fixed_hours,
        pattern,
        rule.tz,
        days_off,
        step,
    )


@dataclass(frozen=True, slots=True)
class WorkingDaysPattern(WallPattern):
    """The pattern's times on working days; times on days off move by `step`, or are left out."""

    days_off: DaysOff
    step: Step | None

    def source(self, day: date) -> date | None:
        """The matching day whose times a working day has: itself or a day off next to it."""
        if self.on(day):
            return day
        if self.step is None:
            return None
        return next(filter(self.on, self.days_off.run_of(day, _back(self.step))), None)

    def _days(self, year: int, month: int) -> tuple[int, ...]:
        # The times make no difference, and hashing them each time would.
        return _working_days(replace(self, times=()), year, month)


@lru_cache(maxsize=4096)
def _working_days(pattern: WorkingDaysPattern, year: int, month: int) -> tuple[int, ...]:
    """The working days of a month that have times of the pattern."""
    _, length = month_shape(year, month)
    days = (date(year, month, number) for number in range(1, length + 1))
    return tuple(
        day.day
        for day in days
        if not pattern.days_off.is_off(day) and pattern.source(day) is not None
    )


@dataclass(frozen=True, slots=True)
class WorkingDaysCronRule(CronRule):
    """A cron rule on working days: only the days of its pattern differ."""

    pattern: WorkingDaysPattern = field(compare=False, repr=False)
    days_off: DaysOff
    step: Step | None

    def fires_between(self, a: datetime, b: datetime) -> bool:
        return self.count_between(a, b) > 0

    def marked(self, previous: datetime, due: datetime) -> Occurrence:
        occurrence = CronRule.marked(self, previous, due)
        shifted = occurrence.missing if occurrence.dst == "shifted" else None
        day = (shifted or occurrence.local).date()
        source = self.pattern.source(day)
        return replace(occurrence, moved_from=source) if source != day else occurrence

    def remedy(self) -> str:
        return f"it names days off of calendar {self.days_off.name!r} only: {_INSTEAD}"


_INSTEAD = "choose other days, or let it run on the previous or the next working day"

# --- All others: instants, day by day -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkingDaysRule(Rule):
    """The occurrences of `rule` on working days."""

    rule: Rule
    days_off: DaysOff
    tz: ZoneInfo

    def next_after(self, instant: datetime) -> datetime | None:
        return self._next(instant, _END)

    def fires_between(self, a: datetime, b: datetime) -> bool:
        return self._next(a, min(b, _END)) is not None

    def _next(self, after: datetime, upto: datetime) -> datetime | None:
        due = self.rule.next_after(_within(after))
        while due is not None and due <= upto:
            day = self.days_off.working_day(today := day_of(self.tz, due), 1)
            if day == today:
                return due
            due = self.rule.next_after(start_of(self.tz, day) - TICK)
        return None

    def count_between(self, a: datetime, b: datetime) -> int:
        """By the rule's own counting, once for each run of working days."""
        a, b, total = _within(a), min(b, _END), 0
        while a < b:
            day = day_of(self.tz, a + TICK)
            working = self.days_off.working_day(day, 1)
            if working > day:
                a = start_of(self.tz, working) - TICK
                continue
            while not self.days_off.is_off(day) and start_of(self.tz, day) <= b:
                day += _DAY
            end = min(start_of(self.tz, day) - TICK, b)
            total += self.rule.count_between(a, end)
            a = end
        return total

    def latest_between(self, a: datetime, b: datetime) -> datetime | None:
        a, b = _within(a), min(b, _END)
        while b > a and (due := self.rule.latest_between(a, b)) is not None:
            day = self.days_off.working_day(today := day_of(self.tz, due), -1)
            if day == today:
                return due
            b = start_of(self.tz, day + _DAY) - TICK
        return None

    def marked(self, previous: datetime, due: datetime) -> Occurrence:
        return self.rule.marked(previous, due)

    def describe(self) -> str:
        return self.rule.describe()

    def remedy(self) -> str:
        return f"it falls on days off of calendar {self.days_off.name!r} only: {_INSTEAD}"


@dataclass(frozen=True, slots=True)
class MovedRule(Rule):
    """The occurrences of a rule that has a few each day at most, those of days off moved by `step`.

    Time is cut into blocks: a working day, with the days off that would move to it.
    """

    rule: Rule
    days_off: DaysOff
    tz: ZoneInfo
    step: Step

    def next_after(self, instant: datetime) -> datetime | None:
        instant = _within(instant)
        first, _ = self._block(self._target(instant))
        while (due := self.rule.next_after(start_of(self.tz, first) - TICK)) and due < _END:
            day = self._target(due)
            found = next((moved for moved in self._on(day)[1] if moved > instant), None)
            if found is not None:
                return found
            first = self._block(day)[1] + _DAY
        return None

    def marked(self, previous: datetime, due: datetime) -> Occurrence:
        source, _ = self._on(day := self._target(due))
        if source == day:
            return self.rule.marked(previous, due)
        return Occurrence(due, due, moved_from=source)

    def describe(self) -> str:
        return self.rule.describe()

    def remedy(self) -> str:
        return self.rule.remedy()

    def _target(self, instant: datetime) -> date:
        """The working day of the block that an instant is in."""
        return self.days_off.working_day(day_of(self.tz, instant), self.step)

    def _block(self, day: date) -> tuple[date, date]:
        """The first and the last day of a working day's block."""
        days = (day, *self.days_off.run_of(day, _back(self.step)))
        return min(days), max(days)

    def _on(self, day: date) -> tuple[date, list[datetime]]:
        """The day whose occurrences a working day has, and when they are then."""
        if own := self._of(day):
            return day, own
        for source in self.days_off.run_of(day, _back(self.step)):
            if instants := self._of(source):
                walls = (due.astimezone(self.tz).time() for due in instants)
                moved = {first_instant(self.tz, datetime.combine(day, at)) for at in walls}
                return source, sorted(due.replace(tzinfo=UTC) for due in moved)
        return day, []

    def _of(self, day: date) -> list[datetime]:
        a, b = (start_of(self.tz, edge) - TICK for edge in (day, day + _DAY))
        return list(self.rule.occurrences_between(a, b))


# Room for a day's search at both ends.
_START, _END = (
    (edge + margin * _DAY).replace(tzinfo=UTC) for edge, margin in ((FIRST, 3), (LAST, -3))
)


def _within(instant: datetime) -> datetime:
    return max(instant, _START)


def _back(step: Step) -> Step:
    return 1 if step == -1 else -1


def start_of(tz: ZoneInfo, day: date) -> datetime:
    """The instant at which the clocks of a zone reach a day."""
    return first_instant(tz, datetime.combine(day, time())).replace(tzinfo=UTC)


def day_of(tz: ZoneInfo, instant: datetime) -> date:
    """The day that the clocks show at an instant; a day that has ended does not come again."""
    bare = instant.replace(tzinfo=None)
    stretch = stretch_at(tz, bare)
    return max(bare + stretch.offset, stretch.reached - TICK).date()
