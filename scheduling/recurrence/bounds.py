"""A rule within limits: after a start, before an end, or once only."""

from dataclasses import dataclass, replace
from datetime import datetime

from .errors import RecurrenceError
from .rule import TICK, Occurrence, Rule, as_utc


@dataclass(frozen=True, slots=True)
class BoundedRule(Rule):
    """The occurrences of `rule` from not_before to not_after, both included.

    With `one_off`, only the first of them.
    """

    rule: Rule
    not_before: datetime | None = None
    not_after: datetime | None = None
    one_off: bool = False

    def next_after(self, instant: datetime) -> datetime | None:
        due = self.rule.next_after(self._from(instant))
        end = self._end()
        return None if due is None or (end is not None and due > end) else due

    def fires_between(self, a: datetime, b: datetime) -> bool:
        return self.rule.fires_between(self._from(a), self._upto(b))

    def count_between(self, a: datetime, b: datetime) -> int:
        return self.rule.count_between(self._from(a), self._upto(b))

    def latest_between(self, a: datetime, b: datetime) -> datetime | None:
        return self.rule.latest_between(self._from(a), self._upto(b))

    def working(self) -> Rule:
        return replace(self, rule=self.rule.working())

    def day_off(self, due: datetime) -> str:
        return self.rule.day_off(due)

    def marked(self, previous: datetime, due: datetime) -> Occurrence:
        return self.rule.marked(self._from(previous), due)

    def describe(self) -> str:
        words = [self.rule.describe()]
        if self.not_before is not None:
            words.append(f"from {self.not_before.replace(tzinfo=None)} UTC")
        if self.not_after is not None:
            words.append(f"until {self.not_after.replace(tzinfo=None)} UTC")
        return " ".join([*words, "once"] if self.one_off else words)

    def remedy(self) -> str:
        return f"move its start or its end; or {self.rule.remedy()}"

    def _from(self, instant: datetime) -> datetime:
        return instant if self.not_before is None else max(instant, _just_before(self.not_before))

    def _upto(self, instant: datetime) -> datetime:
        end = self._end()
        return instant if end is None else min(instant, end)

    def _end(self) -> datetime | None:
        if not (self.one_off and self.not_before):
            return self.not_after
        first = self.rule.next_after(_just_before(self.not_before))
        ends = [end for end in (first, self.not_after) if end is not None]
        return min(ends, default=None)


def bounded(
    rule: Rule,
    *,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
    one_off: bool = False,
) -> Rule:
    """`rule` from not_before to not_after, both included; with `one_off` its first occurrence only.

    The first occurrence depends on the beginning of the search: one_off needs not_before.
    Raises NaiveInstant, RecurrenceError.
    """
    if one_off and not_before is None:
        raise RecurrenceError(f"{rule.describe()!r} as one-off has no start: give not_before")
    if not_before is None and not_after is None:
        return rule
    return BoundedRule(rule, _utc(not_before), _utc(not_after), one_off)


def _just_before(instant: datetime) -> datetime:
    try:
        return instant - TICK
    except OverflowError:  # there is nothing before the year 1
        return instant


def _utc(instant: datetime | None) -> datetime | None:
    return None if instant is None else as_utc(instant)
