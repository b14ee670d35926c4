"""Intervals and single instants: exact arithmetic in UTC, without time zones."""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from .errors import InvalidInterval
from .rule import Rule, as_utc

_UNITS = (
    ("day", timedelta(days=1)),
    ("hour", timedelta(hours=1)),
    ("minute", timedelta(minutes=1)),
    ("second", timedelta(seconds=1)),
    ("millisecond", timedelta(milliseconds=1)),
    ("microsecond", timedelta(microseconds=1)),
)


# A schedule with a shorter one would be nothing but load: 1 microsecond made 110 runs a second.
SHORTEST = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class IntervalRule(Rule):
    """The instants anchor + k * step for k >= 1, and the anchor itself if `includes_anchor`.

    Python keeps both as whole microseconds, so no occurrence drifts, however far away. `slowed` is
    the length that was asked for, if `step` is longer.
    """

    step: timedelta
    anchor: datetime
    includes_anchor: bool = False
    slowed: timedelta | None = None

    def next_after(self, instant: datetime) -> datetime | None:
        try:
            return self.anchor + (self._passed(instant) + 1) * self.step
        except OverflowError:  # past the year 9999
            return None

    def count_between(self, a: datetime, b: datetime) -> int:
        return max(self._passed(b) - self._passed(a), 0)

    def latest_between(self, a: datetime, b: datetime) -> datetime | None:
        passed = self._passed(b)
        return self.anchor + passed * self.step if passed > self._passed(a) else None

    def describe(self) -> str:
        if self.slowed is None:
            return f"every {_length(self.step)}"
        return f"every {_length(self.step)} (slowed: it asks for every {_length(self.slowed)})"

    def remedy(self) -> str:
        return "use a shorter interval or an earlier anchor"

    def _passed(self, instant: datetime) -> int:
        """The k of the last occurrence at or before `instant`; one below the first k if none."""
        nothing_yet = -1 if self.includes_anchor else 0
        return max((instant - self.anchor) // self.step, nothing_yet)


@dataclass(frozen=True, slots=True)
class ClockedRule(Rule):
    """One instant."""

    instant: datetime

    def next_after(self, instant: datetime) -> datetime | None:
        return self.instant if instant < self.instant else None

    def describe(self) -> str:
        return f"once at {self.instant.replace(tzinfo=None)} UTC"

    def remedy(self) -> str:
        return "choose an instant in the future, at most ten years away"


def _length(step: timedelta) -> str:
    name, unit = next((name, unit) for name, unit in _UNITS if not step % unit)
    count = step // unit
    return name if count == 1 else f"{count} {name}s"


def every(
    step: timedelta | float,
    anchor: datetime,
    *,
    includes_anchor: bool = False,
    shortest: timedelta = timedelta(0),
) -> IntervalRule:
    """The rule of a timedelta, or of a number of seconds, counted from `anchor`.

    Seconds are rounded to microseconds; a shorter step than `shortest` is as long as that. Raises
    InvalidInterval, NaiveInstant.
    """
    length = step if isinstance(step, timedelta) else _seconds(step)
    if length <= timedelta(0):
        raise InvalidInterval(f"an interval of {step!r} is not above zero: use a positive length")
    if length < shortest:
        return IntervalRule(shortest, as_utc(anchor), includes_anchor, slowed=length)
    return IntervalRule(length, as_utc(anchor), includes_anchor)


def _seconds(step: float) -> timedelta:
    try:
        if math.isfinite(step):
            return timedelta(seconds=step)
    except (TypeError, OverflowError):
        pass
    raise InvalidInterval(
        f"{step!r} is not a length of time: use a timedelta or a number of seconds"
    )


def once(instant: datetime) -> ClockedRule:
    """The rule of a single instant. Raises NaiveInstant."""
    return ClockedRule(as_utc(instant))
