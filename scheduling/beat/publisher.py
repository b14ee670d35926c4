"""The steps of a tick that need Redis: publish, push, resend lost hints, sign in.

While Redis is away they do nothing and keep the error. Everything else in the tick goes on: each
due occurrence gets its row, and its hint follows later.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import TypeVar

from scheduling import heartbeats
from scheduling.beat import dispatch, lost_hints
from scheduling.beat.lanes import Lanes
from scheduling.beat.lost_leases import SilenceWatch
from scheduling.beat.patient import PAUSE_MAX, REDIS_AWAY, PatientBroker
from scheduling.beat.timers import Timer
from scheduling.logs import event
from scheduling.runs.hints import Hint, Lane

logger = logging.getLogger(__name__)

T = TypeVar("T")

RESEND_EVERY = 3.0  # seconds between looks for lost hints, at least
RESEND_SHARE = 20  # a look for lost hints is followed by a pause of this many times its own time
RESEND_WITHIN = 8.0  # seconds for which a look for lost hints may wait until a herd is fired
SIGN_IN_EVERY = 15.0  # seconds between this beat's notes in Redis that it is there
LOG_SHARED_EVERY = 600.0  # seconds between log lines about another ledger in the same Redis
LANES_MAX = 50  # the latest lanes that schedules were fired into, and probably will be again


class Publisher:
    """Beat's use of Redis; `error` is the first error of Redis in this tick."""

    def __init__(self, default: Lane, silence: SilenceWatch) -> None:
        self.broker = PatientBroker()
        self.error: Exception | None = None
        self.lanes = [default]
        self.shared = ""  # for the heartbeat: other ledgers that use this Redis
        self.resend_by = Timer(RESEND_WITHIN)
        self._silence = silence
        self._pushes = dispatch.Pushes(self.broker)
        self._resend = Timer()
        self._sign_in = Timer()
        self._log_shared = Timer()

    def can_ask(self) -> bool:
        """Return whether Redis is there, as far as this beat knows."""
        return self.error is None and self.broker.is_there()

    def _ask(self, act: Callable[[], T]) -> T | None:
        try:
            return act()
        except REDIS_AWAY as error:
            self.error = error
            self._silence.not_asked()
            return None

    def publish(self, lanes: Lanes, *, due: bool) -> dispatch.Published | None:
        """Publish waiting runs, and look how much room there is for due ones; None: Redis is away.

        Args:
            due: schedules are due, which will probably be fired into the latest lanes.
        """
        if not self.can_ask():
            return None
        others, coming = self.lanes if due else (), self._pushes.coming()
        act = partial(dispatch.publish, self.broker, others=others, coming=coming, lanes=lanes)
        return self._ask(act)

    def push(self, hints: Sequence[Hint], *, in_background: bool) -> None:
        """Push the hints of fired runs; in the background, Postgres works on the next batch."""
        if self.error is not None:
            self.broker.unsure.update(hints)
        elif hints and in_background:
            self._ask(partial(self._pushes.begin, hints))
        else:
            self._ask(partial(dispatch.push, self.broker, hints))

    def end_pushes(self) -> None:
        self._ask(self._pushes.end)

    def fired_into(self, fired: Mapping[Lane, datetime | None]) -> None:
        """Remember the lanes that schedules were just fired into."""
        self.lanes = list(dict.fromkeys([*fired, *self.lanes]))[:LANES_MAX]

    def publish_into(self, fired: Iterable[Lane], room: Iterable[Lane], lanes: Lanes) -> None:
        """Publish at once if runs were fired into lanes that were not among those with room."""
        if not set(room) >= set(fired) and self.can_ask():
            self._ask(partial(dispatch.publish, self.broker, lanes=lanes))

    def resend(self, low: datetime | None, *, wanted: bool, busy: bool) -> None:
        """Push lost hints again; a busy beat postpones it for some seconds.

        Args:
            low: no run was queued before this instant.
            wanted: some runs have been queued for so long that their hints may be lost.
        """
        if not wanted:
            self.resend_by.again_in(RESEND_WITHIN)
        elif self.can_ask() and (self.resend_by if busy else self._resend).is_due():
            begun = time.monotonic()
            self._ask(partial(lost_hints.resend, self.broker, low=low))
            took = time.monotonic() - begun
            self._resend.again_in(max(RESEND_EVERY - took, (RESEND_SHARE - 1) * took))
            self.resend_by.at = self._resend.at + RESEND_WITHIN

    def sign_in(self) -> None:
        """Note in Redis that this beat is there, and report other ledgers in the same Redis."""
        if not self._sign_in.is_due() or not self.can_ask():
            return
        self._sign_in.again_in(SIGN_IN_EVERY)
        try:
            others = self.broker.sign_in()
        except REDIS_AWAY as error:  # the next step that needs Redis for a run reports it
            logger.debug("not_signed_in", exc_info=error)
            self._silence.not_asked()
            return
        self.shared = f"; {heartbeats.SHARED} {', '.join(others)}" if others else ""
        if others and self._log_shared.is_due():
            self._log_shared.again_in(LOG_SHARED_EVERY)
            event(logger, "redis_shared", level=logging.WARNING, others=", ".join(others))

    def rehearse(self) -> float:
        """Connect and make a first message; return the seconds until another try, 0 if it is done.

        An error is not reported: no run needs Redis yet.
        """
        if not self.broker.is_there():
            return PAUSE_MAX
        try:
            self.broker.rehearse(self.lanes[0])
        except REDIS_AWAY as error:
            logger.debug("redis_away", exc_info=error)
            return PAUSE_MAX
        return 0.0
