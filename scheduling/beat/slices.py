"""Bounds the time of beat's repeated work, however many rows there are to read."""

import time
from collections.abc import Callable, Iterator

SLOW = 0.005  # seconds that something done in each tick may take
VERY_SLOW = 0.05  # that something done once a second may take
SLOW_ONES = 3  # one after the other: a busy machine alone makes one slow
RARELY = 20  # what is slow and did nothing is done again after so many times what it took
SLICE = 0.002  # seconds that a slice should take
SHARE = 0.1  # of the time that all slices may take
AT_ONCE = 0.01  # seconds that may be saved up of it: a ring must not wait longer
CUT_OFF = 0.004  # seconds after which a slice is cut off, to be narrower the next time
NARROWER = 4  # times as narrow is a slice that was cut off
SLICES_MOST = 300  # a slice is at least this small a part of the way so far: the way has an end
NARROW_ONES = 200  # slices of a way that may be narrower still, where one was cut off
SLOWLY_UP = 1.1  # times as long as it took may the quickest one take the next time
WIDER = 2  # times as wide is what follows a slice that took little: more would go too far at once


class Slices:
    """Goes from `high` back to `low`, places on any scale of whole numbers, again and again.

    A slice is as wide as it can be for what it takes, and begins `width` wide. So what is mostly
    empty is passed in a few steps. A slice that takes longer than `patience` seconds should be cut
    off: the caller says so (`cut_off`), and the next one begins at the same place and is narrower.
    """

    def __init__(self, low: int, high: int, width: int) -> None:
        self.cost: float | None = None  # seconds of the last whole way
        self.patience = CUT_OFF
        self._was_cut_off = False
        self._low, self._high, self._first_width = low, high, width
        self._credit, self._since = AT_ONCE, time.monotonic()
        self._may_begin_again = True
        self._least = SLICE  # seconds of the quickest ones
        self._begin()

    def _begin(self) -> None:
        self._until, self._width, self._took = self._high, self._first_width, 0.0
        self._narrow_ones = NARROW_ONES
        self._top: int | None = None

    def begin_again(self) -> None:
        """Go back to `high`, but not so often that the way to `low` never ends."""
        if self._may_begin_again:
            self._may_begin_again = False
            self._begin()

    def cut_off(self) -> None:
        """Note that the slice that was yielded last took longer than `patience`."""
        self._was_cut_off = True

    def go_back(
        self, seconds: float, high: int | None = None
    ) -> Iterator[tuple[int | None, int | None]]:
        """Yield slices for about so long, to the end at most: from where, and to where.

        None is for what has no bound. The caller does a slice's work before it asks for the next.
        The width of the first slice counts from `high`, where it is given, and beyond that it is
        open.
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
            if self._was_cut_off:
                self._narrow_down(now - begun)
            else:
                self._note(low, now - begun)
            if low <= self._low or now >= until:
                return

    def _narrow_down(self, took: float) -> None:
        """Begin a slice that was cut off again; if it cannot be narrower, with more patience."""
        self._was_cut_off = False
        self._credit -= took
        self._took += took
        least = 1 if self._narrow_ones > 0 else self._least_width(self._until)
        if self._width <= least:
            self.patience *= 2
        self._width = max(self._width // NARROWER, least)

    def _least_width(self, place: int) -> int:
        top = self._high if self._top is None else self._top
        return max((top - place) // SLICES_MOST, 1)

    def _has_credit(self) -> bool:
        now = time.monotonic()
        self._credit = min(self._credit + (now - self._since) * SHARE, AT_ONCE)
        self._since = now
        return self._credit > 0

    def _note(self, low: int, took: float) -> None:
        self.patience = CUT_OFF
        self._credit -= took
        self._took += took
        if low <= self._low:
            self.cost = self._took
            self._may_begin_again = True
            self._begin()
            return
        self._until = low
        # What is empty takes its time on a busy machine, too.
        self._least = min(took, self._least * SLOWLY_UP, 2 * SLICE)
        if took < max(SLICE / 2, 1.5 * self._least):
            self._width *= WIDER
        elif took > max(SLICE, 3 * self._least):
            self._width //= 2
        least = self._least_width(low)
        if self._width < least and self._narrow_ones > 0:
            self._narrow_ones -= 1
        else:
            self._width = max(self._width, least)


class Reach:
    """A range that is looked at as a whole while that is quick, and else in slices.

    After a slow look, one that takes longer than `patience` seconds should be cut off, as in
    `Slices`.
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
    """Steps that took long and did nothing rest for a while: something keeps them from their work.

    A row that a user has locked is found in each tick, and what is found is then looked for among
    all that an old snapshot keeps.
    """

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def over(self, name: str) -> bool:
        """Return whether the step need not rest any more."""
        return time.monotonic() >= self._until.get(name, 0.0)

    def after(self, name: str, step: Callable[[], int]) -> int:
        """Do the step; return what it returns: how much it did."""
        begun = time.monotonic()
        done = step()
        took = time.monotonic() - begun
        if not done and took > SLOW:
            self._until[name] = begun + RARELY * took
        return done
