"""Bounds the time of beat's repeated work, however many rows there are to read."""

import time
from collections.abc import Callable, Iterator

SLOW = 0.005  # seconds that something done in each tick may take
VERY_SLOW = 0.05  # seconds that something done once a second may take
SLOW_ONES = 3  # slow looks in a row; a single one may be slow because the machine is busy
RARELY = 20  # a slow step that found no work rests for this many times its own time
SLICE = 0.002  # seconds for which a tick looks at slices
SHARE = 0.1  # of the time that all slices may take
AT_ONCE = 0.01  # seconds of that share that may be saved up: a ring must not wait longer
CUT_OFF = 0.004  # seconds after which a statement of a slice is cut off
STEP = 4  # times as narrow is a slice that was cut off; as wide is the next if none was
STEADY = 8  # slices of one width after one was cut off: wider ones would be cut off as well
SLICES_MOST = 300  # a slice is at least this small a part of the way so far: the way has an end
NARROW_ONES = 200  # slices of a way that may be narrower than that, after one was cut off


class Slices:
    """Goes from `high` back to `low`, places on any scale of whole numbers, again and again.

    The first slice is `width` wide. Slices widen until one is cut off: the caller runs each under a
    time-out of `patience` seconds, and reports a time-out with `cut_off`. The same place then
    follows in narrower slices. So a mostly empty range takes a few slices, and a full one takes
    many short slices.
    """

    def __init__(self, low: int, high: int, width: int) -> None:
        self.cost: float | None = None  # seconds of the last whole way
        self.patience = CUT_OFF
        self._low, self._high, self._first_width = low, high, width
        self._credit, self._since = AT_ONCE, time.monotonic()
        self._may_begin_again = True
        self._was_cut_off = False
        self._begin()

    def _begin(self) -> None:
        self._until, self._width, self._took = self._high, self._first_width, 0.0
        self._narrow_ones, self._steady = NARROW_ONES, 0
        self._top: int | None = None

    def begin_again(self) -> None:
        """Go back to `high`, but not so often that the way to `low` never ends."""
        if self._may_begin_again:
            self._may_begin_again = False
            self._begin()

    def cut_off(self) -> None:
        """Note that the slice that was yielded last timed out."""
        self._was_cut_off = True

    def go_back(
        self, seconds: float, high: int | None = None
    ) -> Iterator[tuple[int | None, int | None]]:
        """Yield slices for about `seconds`, to the end of the way at most: from where, to where.

        None stands for an open end. The caller looks at a slice before it asks for the next one.

        Args:
            high: where the first slice's width is counted from; the slice is open beyond it.
        """
        until = time.monotonic() + seconds
        while self._has_credit():
            begun = time.monotonic()
            if self._top is None:
                self._top = self._high if high is None else min(high, self._high)
            low = min(self._until, self._top) - self._width
            yield (
                None if low <= self._low else low,
                None if self._until == self._high else self._until,
            )
            now = time.monotonic()
            self._credit -= now - begun
            self._took += now - begun
            if self._was_cut_off:
                self._narrow_down()
                continue
            self._go_on(low)
            if low <= self._low or now >= until:
                return

    def _has_credit(self) -> bool:
        now = time.monotonic()
        self._credit = min(self._credit + (now - self._since) * SHARE, AT_ONCE)
        self._since = now
        return self._credit > 0

    def _go_on(self, low: int) -> None:
        self.patience = max(self.patience / 2, CUT_OFF)
        if low <= self._low:
            self.cost = self._took
            self._may_begin_again = True
            self._begin()
            return
        self._until = low
        if self._steady:
            self._steady -= 1
        else:
            self._width *= STEP
        least = self._least_width()
        if self._width < least and self._narrow_ones > 0:
            self._narrow_ones -= 1
        else:
            self._width = max(self._width, least)

    def _narrow_down(self) -> None:
        """Begin the slice again and narrower; if it is as narrow as it may be, with more time."""
        self._was_cut_off, self._steady = False, STEADY
        least = 1 if self._narrow_ones > 0 else self._least_width()
        if self._width <= least:
            self.patience *= 2
        self._width = max(self._width // STEP, least)

    def _least_width(self) -> int:
        top = self._high if self._top is None else self._top
        return max((top - self._until) // SLICES_MOST, 1)


class Reach:
    """A range that is looked at as a whole while that is quick, and in slices otherwise.

    After a slow look, `patience` limits the seconds of the next look, as in `Slices`.
    """

    def __init__(self, low: int, high: int) -> None:
        self.narrow = False
        self._slow = 0
        self._low, self._high = low, high
        self._slices = Slices(low, high, 1)

    @property
    def patience(self) -> float | None:
        if self.narrow:
            return self._slices.patience
        return VERY_SLOW if self._slow else None

    def cut_off(self) -> None:
        """Note that the last look took longer than `patience`."""
        if self.narrow:
            self._slices.cut_off()
        else:
            self._slow = SLOW_ONES

    def look(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges to look at now: the first and the last place of each."""
        if not self.narrow:
            begun = time.monotonic()
            yield self._low, self._high
            if time.monotonic() - begun <= VERY_SLOW:
                self._slow = 0
            elif self._slow < SLOW_ONES:
                self._slow += 1
            if self._slow >= SLOW_ONES:
                self.narrow, self._slow = True, 0
                self._slices = Slices(self._low, self._high, 1)
            return
        for low, high in self._slices.go_back(SLOW):
            yield self._low if low is None else low, self._high if high is None else high
        cost = self._slices.cost
        self.narrow = cost is None or cost >= VERY_SLOW


class Rests:
    """Lets steps rest that took long and found no work.

    A row that a user has locked is found in each tick, but the step cannot take it. With an old
    snapshot, the step then reads past all dead entries in vain.
    """

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def over(self, name: str) -> bool:
        """Return whether the rest of a step is over."""
        return time.monotonic() >= self._until.get(name, 0.0)

    def after(self, name: str, step: Callable[[], int]) -> int:
        """Run a step; return the number of rows that it changed."""
        begun = time.monotonic()
        done = step()
        took = time.monotonic() - begun
        if not done and took > SLOW:
            self._until[name] = begun + RARELY * took
        return done
