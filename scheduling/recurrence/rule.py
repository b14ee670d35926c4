"""The questions that every rule answers, in UTC instants: pure functions of their arguments."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Literal

from .errors import NaiveInstant

TICK = timedelta(microseconds=1)

Dst = Literal["", "shifted", "repeated", "skipped"]


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One occurrence as a person should see it.

    `due_at` is the instant (UTC); `local` the same instant in the rule's zone (UTC for rules
    without one). `dst` says how a change of the zone's clocks affects it:

    - `""`: nothing.
    - `"shifted"`: the time it was written for does not exist; it runs at the first instant after
      the gap. `missing` is the time that does not exist.
    - `"repeated"`: this is the second pass of a wall-clock time that the clocks show twice.
    - `"skipped"`: between the previous occurrence and this one, a time the rule names did not
      exist and nothing ran for it. `missing` is the first such time.

    `missing` is a naive wall-clock datetime: it has no instant. `missing_more` says how many such
    times there were after it.

    If a calendar moved it, `moved_from` is the day off on which it was. If a calendar leaves it
    out, `day_off` says why.
    """

    due_at: datetime
    local: datetime
    dst: Dst = ""
    missing: datetime | None = None
    moved_from: date | None = None
    day_off: str = ""
    missing_more: int = 0


class Rule(ABC):
    """A frozen, hashable value. Arguments are aware instants; returned instants are in UTC."""

    __slots__ = ()

    @abstractmethod
    def next_after(self, instant: datetime) -> datetime | None:
        """The first occurrence strictly after `instant`, or None after the last one."""

    @abstractmethod
    def describe(self) -> str:
        """A short text for people."""

    @abstractmethod
    def remedy(self) -> str:
        """What to change in a rule of this kind that never fires."""

    def occurrences_between(self, a: datetime, b: datetime) -> Iterator[datetime]:
        """The occurrences with a < t <= b, ascending."""
        due = self.next_after(a)
        while due is not None and due <= b:
            yield due
            due = self.next_after(due)

    def fires_between(self, a: datetime, b: datetime) -> bool:
        """Whether there is an occurrence with a < t <= b, without a look beyond b."""
        due = self.next_after(a)
        return due is not None and due <= b

    def count_between(self, a: datetime, b: datetime) -> int:
        """How many occurrences have a < t <= b."""
        return sum(1 for _ in self.occurrences_between(a, b))

    def latest_between(self, a: datetime, b: datetime) -> datetime | None:
        """The last occurrence with a < t <= b: looked for in windows that grow backwards from b."""
        window = timedelta(days=2)
        while b > a:
            start = b - window if b - a > window else a
            if found := deque(self.occurrences_between(start, b), maxlen=1):
                return found[0]
            b, window = start, window * 4
        return None

    def working(self) -> "Rule":
        """The rule without occurrences that its calendar leaves out; itself without a calendar."""
        return self

    def day_off(self, due: datetime) -> str:
        """Why its calendar leaves the occurrence at `due` out, or "" if it does not."""
        return ""

    def marked(self, previous: datetime, due: datetime) -> Occurrence:
        """The occurrence at `due`, which follows `previous`, with its mark."""
        return Occurrence(due, due)


def as_utc(instant: datetime) -> datetime:
    """The same instant in UTC; a datetime without a zone is not an instant."""
    if instant.tzinfo is UTC:
        return instant
    if instant.utcoffset() is None:
        raise NaiveInstant(
            f"{instant.isoformat()} has no time zone: give an aware datetime, "
            f"such as {instant.replace(tzinfo=UTC).isoformat()}"
        )
    return instant.astimezone(UTC)
