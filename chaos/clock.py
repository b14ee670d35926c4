"""The ledger's clock beside the machine's clock, while a fault steps the ledger's. Pure.

Jobs, users and faults note moments by the machine's clock, in seconds since 1970. The ledger's
clock is ahead of it by the sum of the steps so far. After a step back the ledger's clock shows
instants a second time; a step forward leaves some out. While a step is being made, either sum may
hold.
"""

from collections.abc import Iterable
from datetime import datetime
from math import inf
from typing import NamedTuple

from chaos.story import Step

NEAR = 0.002  # seconds by which two readings of one clock may differ


class _Stretch(NamedTuple):
    """From `since` to `until`, by the machine's clock, the ledger's may be `ahead` of it."""

    since: float
    until: float
    ahead: float


class Clock:
    """Translates between the two clocks.

    `rewound` holds the stretches that a step back made the ledger's clock show again, each as the
    first and the last instant, by the ledger's clock.
    """

    def __init__(self, steps: Iterable[Step] = ()) -> None:
        self._stretches = [_Stretch(-inf, inf, 0.0)]
        self.rewound = list[tuple[float, float]]()
        for step in steps:
            last = self._stretches[-1]
            new = _Stretch(step.began, inf, last.ahead + step.size)
            self._stretches[-1] = last._replace(until=step.ended)
            self._stretches.append(new)
            if step.size < 0:
                self.rewound.append((step.began + new.ahead, step.ended + last.ahead))

    def highest(self, at: float, within: float = inf) -> float:
        """Return the highest that the ledger's clock showed in the seconds `within` before `at`."""
        return max(
            min(at, stretch.until) + stretch.ahead
            for stretch in self._stretches
            if stretch.since <= at and stretch.until >= at - within
        )

    def lowest(self, since: float, until: float) -> float:
        """Return the lowest that the ledger's clock showed between two instants."""
        return min(
            max(since, stretch.since) + stretch.ahead
            for stretch in self._stretches
            if stretch.since <= until and stretch.until >= since
        )

    def earliest(self, shown: datetime, after: float = -inf) -> float:
        """Return when, not before `after`, the ledger's clock may first have shown an instant."""
        moments = self._moments(shown)
        return next((moment for moment in moments if moment >= after - NEAR), moments[-1])

    def latest(self, shown: datetime) -> float:
        """Return the last moment at which the ledger's clock may have shown an instant."""
        return self._moments(shown)[-1]

    def elapsed(self, since: datetime, until: datetime) -> float:
        """Return the least number of seconds between two readings of the ledger's clock."""
        begin, ends = self._moments(since), self._moments(until)
        return min(abs(end - moment) for end in ends for moment in begin)

    def showed_again(self, shown: datetime) -> bool:
        """Whether a step back made the ledger's clock show an instant a second time."""
        return any(low <= shown.timestamp() <= high for low, high in self.rewound)

    def _moments(self, shown: datetime) -> list[float]:
        """Return when the ledger's clock showed an instant; ascending.

        For an instant that a step forward left out this is the moment of the step.
        """
        at, found = shown.timestamp(), list[tuple[float, float]]()
        for stretch in self._stretches:
            moment = at - stretch.ahead
            inside = min(max(moment, stretch.since), stretch.until)
            found.append((abs(inside - moment), inside))
        near = max(min(found)[0], NEAR)
        return sorted(moment for distance, moment in found if distance <= near)
