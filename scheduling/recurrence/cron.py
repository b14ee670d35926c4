"""Cron rules: wall-clock times of a zone, mapped to instants.

Where the clocks change:

- A *fixed* rule (minute and hour are plain numbers or lists of them) names times of day. A time
  in a gap runs at the first instant after the gap; several in one gap coincide there and are one
  occurrence. A time that the clocks show twice runs once, at its first pass.
- Any other rule (a wildcard, step or range in minute or hour, also inside a list) says how often.
  It occurs whenever the clocks show a time that matches, in both passes of a repeated hour.
  If its hours are fixed (`*/30 2 * * *`), the times in a gap run once at the first instant after
  the gap, as those of a fixed rule do: otherwise the gap could take the rule's whole day. If its
  hours are a wildcard, step or range, it does not occur at times in a gap, so its intervals stay
  even.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from . import dialect
from .errors import UnknownTimezone
from .pattern import WallPattern, times_of_day
from .rule import TICK, Dst, Occurrence, Rule
from .wallclock import FIRST, LAST, Stretch, stretch_at, zone

# Longer than clocks are ever turned back: later than this after an instant, they do not show
# earlier times again.
_REPLAY = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class CronRule(Rule):
    """Built by `cron()`. The expression and the zone's name are its identity."""

    expression: str
    timezone: str
    fixed: bool = field(compare=False, repr=False)
    fixed_hours: bool = field(compare=False, repr=False)
    pattern: WallPattern = field(compare=False, repr=False)
    tz: ZoneInfo = field(compare=False, repr=False)

    def next_after(self, instant: datetime) -> datetime | None:
        after = max(instant.replace(tzinfo=None), FIRST)
        resume = after
        while resume < LAST:
            stretch = stretch_at(self.tz, resume)
            wall = self.pattern.next(self._passed(stretch, after))
            if wall is None:
                return None
            due = max(wall - stretch.offset, stretch.start)
            if due < stretch.end:
                return due.replace(tzinfo=UTC)
            resume = stretch.end
            if resume - after > _REPLAY:  # nothing matches before `wall`: go straight there
                resume = max(resume, due - _REPLAY)
        return None

    def count_between(self, a: datetime, b: datetime) -> int:
        after, upto = max(a.replace(tzinfo=None), FIRST), min(b.replace(tzinfo=None), LAST - TICK)
        total = 0
        resume = after
        while resume <= upto:
            stretch = stretch_at(self.tz, resume)
            total += self._count_in(stretch, after, min(upto, stretch.end - TICK))
            resume = stretch.end
        return total

    def latest_between(self, a: datetime, b: datetime) -> datetime | None:
        after, upto = max(a.replace(tzinfo=None), FIRST), min(b.replace(tzinfo=None), LAST - TICK)
        while upto > after:
            stretch = stretch_at(self.tz, upto)
            wall = self.pattern.latest(upto + stretch.offset)
            if wall is None or wall < after - _REPLAY:
                return None
            if wall > self._passed(stretch, after):
                return max(wall - stretch.offset, stretch.start).replace(tzinfo=UTC)
            upto = stretch.start - TICK
        return None

    def marked(self, previous: datetime, due: datetime) -> Occurrence:
        local = due.astimezone(self.tz)
        instant = due.replace(tzinfo=None)
        stretch = stretch_at(self.tz, instant)
        if not self.fixed and instant + stretch.offset < stretch.reached:
            return Occurrence(due, local, "repeated")
        if self.fixed_hours:
            missing = self._missing_before(stretch) if instant == stretch.start else []
            return _with_missing(Occurrence(due, local), "shifted", missing)
        missing = self._missing_between(previous.replace(tzinfo=None), stretch)
        return _with_missing(Occurrence(due, local), "skipped", missing)

    def describe(self) -> str:
        return f"{self.expression} ({self.timezone})"

    def remedy(self) -> str:
        return (
            "day of month, month and day of week must meet on one day (31 February never does), "
            "at a time that the clocks show: change one of them"
        )

    def _passed(self, stretch: Stretch, after: datetime) -> datetime:
        """The last wall clock that this stretch has no occurrence for, of those after `after`.

        A fixed rule leaves out times that were shown before. A rule with fixed hours takes in the
        gap's times: those times map to instants before the stretch, hence the max() of the
        callers.
        """
        takes_reached = self.fixed_hours if stretch.after_gap else self.fixed
        first = (stretch.reached if takes_reached else stretch.opens) - TICK
        return first if after < stretch.start else max(first, after + stretch.offset)

    def _count_in(self, stretch: Stretch, after: datetime, upto: datetime) -> int:
        count = self.pattern.count(self._passed(stretch, after), upto + stretch.offset)
        if self.fixed_hours and stretch.after_gap and after < stretch.start:
            coinciding = self.pattern.count(stretch.reached - TICK, stretch.opens)
            count -= max(coinciding - 1, 0)
        return max(count, 0)  # negative where a repeated time goes on past `upto`

    def _missing_before(self, stretch: Stretch) -> list[datetime]:
        """The matches in the gap before the stretch, wall clocks that were never shown."""
        found = list[datetime]()
        wall = self.pattern.next(stretch.reached - TICK) if stretch.after_gap else None
        while wall is not None and wall < stretch.opens:
            found.append(wall)
            wall = self.pattern.next(wall)
        return found

    def _missing_between(self, previous: datetime, stretch: Stretch) -> list[datetime]:
        missing = list[datetime]()
        while stretch.start > max(previous, FIRST):
            missing = self._missing_before(stretch) + missing
            stretch = stretch_at(self.tz, stretch.start - TICK)
        return missing


def _with_missing(occurrence: Occurrence, dst: Dst, missing: Sequence[datetime]) -> Occurrence:
    if not missing:
        return occurrence
    return replace(occurrence, dst=dst, missing=missing[0], missing_more=len(missing) - 1)


def cron(expression: str, timezone: str | ZoneInfo) -> CronRule:
    """The rule of "minute hour day-of-month month day-of-week" on the clocks of an IANA zone.

    Celery's dialect: both day fields must match; 7 is Sunday too. Raises InvalidCron,
    UnknownTimezone.
    """
    name = timezone if isinstance(timezone, str) else getattr(timezone, "key", None)
    if name is None:
        raise UnknownTimezone(
            f"{timezone!r} has no name: use an IANA name such as 'Europe/Berlin' or 'UTC'"
        )
    return _parsed(expression, name)


@lru_cache(maxsize=16_384)
def _parsed(expression: str, timezone: str) -> CronRule:
    tidied = dialect.tidy(expression)
    tz = zone(timezone)
    read = dialect.numbers(tidied)
    times = times_of_day(read.minutes, read.hours)
    pattern = WallPattern(times, read.days, read.months, read.weekdays)
    return CronRule(tidied, timezone, read.fixed, read.fixed_hours, pattern, tz)
