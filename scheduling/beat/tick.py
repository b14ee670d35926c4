"""One tick of beat: all steps in their order, and the seconds until there may be more work."""

import logging
import time
from collections.abc import Mapping

from django.db import connection

from scheduling import heartbeats
from scheduling.beat import clock_steps, firing
from scheduling.beat.looking import Look, Lookout
from scheduling.beat.lost_leases import SilenceWatch
from scheduling.beat.publisher import Publisher
from scheduling.beat.recovery import Recovery
from scheduling.beat.session import Session
from scheduling.beat.timers import Timer
from scheduling.postgres.sql import going_on
from scheduling.runs.hints import Lane
from scheduling.schedules import last_runs, planning

logger = logging.getLogger(__name__)

SLEEP_MAX = 1.0  # seconds without a look at the ledger, at most
BUSY_MAX = 1.0  # seconds of full batches before the rarer steps get their turn
LOCKED_PAUSE = 0.05  # seconds between looks at due plans that other transactions have locked
LOOK_BACK_EVERY = 0.1  # seconds between looks at the past while looks are narrow
COPY_EVERY = 60.0  # seconds between copies of last runs to PeriodicTask
COPY_BATCH = 200  # schedules at a time
COPY_PAUSE = 0.05  # seconds between batches of copies while nothing is due
PULSE_EVERY = 5.0  # seconds between heartbeats
HERD = 8  # full batches in a row, after which they are longer
LONG_BATCH = 2 * firing.BATCH


class Done:
    """The work of one tick, which decides how soon the next one follows."""

    def __init__(self) -> None:
        self.planned = self.fired = self.hints = 0
        self.next_in: float | None = None  # seconds until the next waiting run may start

    @property
    def full(self) -> bool:
        """Whether a batch was full, so that there may be more."""
        return max(self.planned, self.fired, self.hints) >= planning.BATCH

    @property
    def any(self) -> bool:
        return bool(self.planned or self.fired or self.hints)


class Tick:
    """Runs ticks, and keeps the state that passes from one tick to the next."""

    def __init__(self, default: Lane) -> None:
        self.lookout = Lookout()
        self.silence = SilenceWatch()
        self.publisher = Publisher(default, self.silence)
        self.recovery = Recovery(self.lookout, self.silence)
        self.pulse = Timer()
        self.copy = Timer(COPY_EVERY)
        self.busy = False  # due schedules are fired now
        self.rehearsed: object = None  # the connection that a batch has been rehearsed on
        self._rehearse = Timer()
        self._session = Session()
        self._full_batches = 0  # in a row
        self._newest = False
        self._last_fired: set[int] = set()
        self._to_copy: set[int] = set()
        self._name = heartbeats.new_name("beat")
        self._fired_in_all = 0

    def run(self) -> float:
        """Do all due work; return the seconds until there may be more, at most SLEEP_MAX.

        `publisher.error` says afterwards if Redis is away.
        """
        self.publisher.error = None
        look = self._look()
        self._beat(look)
        repaired = self.recovery.run(look)
        escalated = self.recovery.escalate(look)
        more_failures = self.recovery.settle_failures(look)
        done = self._plan_publish_fire(look)
        self.publisher.resend(self.lookout.lows["queued"], wanted=look.hints_old, busy=done.full)
        if not done.full:
            self.publisher.sign_in()
        self._copy_last_runs()
        if look.next_due_in is not None and not (done.full or done.planned):
            self.recovery.remove_due_orphans(-look.next_due_in)
        if done.full or done.any or repaired or escalated or more_failures:
            return 0.0
        return self._wait(look, done)

    def _look(self) -> Look:
        self._session.prepare()
        asked = time.monotonic()
        look = self.lookout.look()
        if step := self.silence.said(look.now, asked):
            # The ledger's clock was stepped.
            self.lookout.heard(abs(step))
            if step < 0:
                with going_on(logger, "repair_failed"):
                    clock_steps.settle_queued()
        return look

    def _beat(self, look: Look) -> None:
        """Write this beat's heartbeat."""
        if self.pulse.is_due():
            doing = f"fired {self._fired_in_all} in all; looked at {look.now:%H:%M:%S} UTC"
            heartbeats.pulse(self._name, "beat", doing + self.publisher.shared)
            heartbeats.forget_dead()
            self.pulse.again_in(PULSE_EVERY)

    def _plan_publish_fire(self, look: Look) -> Done:
        """Plan, publish and fire, batch after batch while they are full."""
        done, next_due, busy_until = Done(), look.next_due_in, time.monotonic() + BUSY_MAX
        try:
            while True:
                done.planned = self._plan() if look.to_plan else 0
                due = bool(done.planned) or (next_due is not None and next_due <= 0)
                self.busy = due
                published = self.publisher.publish(self.lookout.lanes, due=due)
                done.fired = self._fire(published and published.room) if due else 0
                self.silence.heard()
                if published:
                    done.hints, done.next_in = published.hints, published.next_in
                else:
                    done.hints, done.next_in = 0, None
                if not done.full or time.monotonic() >= busy_until:
                    return done
        finally:
            self.publisher.end_pushes()
            self.busy = done.full

    def _plan(self) -> int:
        plans = planning.make_plans(planning.BATCH, self.lookout.lows["to_plan"])
        for plan in plans.made:
            # The next instant counts from the time of the edit, so it may have passed already.
            if plan.next_due_at is not None:
                self.lookout.lower("due", plan.next_due_at)
        return plans.needed

    def _fire(self, room: Mapping[Lane, int] | None) -> int:
        """Fire a batch and push the hints of queued runs; `room` is None while Redis is away."""
        # Short batches first: the first hint comes sooner, and other beats may share. Long ones
        # cost less.
        limit = firing.BATCH if self._full_batches < HERD else LONG_BATCH
        fired = firing.fire_due(self.lookout.after("due"), limit, room, newest=self._newest)
        self._full_batches = self._full_batches + 1 if fired.plans >= limit else 0
        # While schedules catch up, every second batch takes the newest instants: schedules that
        # come due now do not wait for them.
        self._newest = fired.behind is not None and not self._newest
        if fired.behind is not None:
            self.lookout.lower("due", fired.behind)
        for lane, run_at in fired.lanes.items():
            if run_at is not None:
                self.lookout.lanes.add(lane, run_at)
        self.publisher.push(fired.hints, in_background=bool(self._full_batches))
        if room is not None:
            self.publisher.publish_into(fired.lanes, room, self.lookout.lanes)
        self.publisher.fired_into(fired.lanes)
        self._last_fired.update(fired.schedule_ids)
        self._fired_in_all += len(fired.schedule_ids)
        if fired.one_off_ids:
            last_runs.copy(fired.one_off_ids)
        return fired.plans

    def _copy_last_runs(self) -> None:
        """Copy a few at a time: a minute's copies at once would delay due schedules."""
        if self._last_fired and not self._to_copy and self.copy.is_due():
            self._to_copy, self._last_fired = self._last_fired, set()
            self.copy.again_in(COPY_EVERY)
        if self._to_copy:
            count = min(COPY_BATCH, len(self._to_copy))
            last_runs.copy([self._to_copy.pop() for _ in range(count)])

    def _wait(self, look: Look, done: Done) -> float:
        """Return the seconds until the next work; use some of them for the past, or to rehearse."""
        next_due = look.next_due_in
        if next_due is not None and next_due <= 0:
            next_due = LOCKED_PAUSE
        elif self.rehearsed is not connection.connection and self._rehearse.is_due():
            self._rehearse_batch()
            return 0.0
        waits = [SLEEP_MAX, next_due, done.next_in, COPY_PAUSE if self._to_copy else None]
        return self._look_back(max(min(wait for wait in waits if wait is not None), 0.0))

    def _rehearse_batch(self) -> None:
        """Do everything once that is slow the first time; a first herd would be 50 ms later."""
        firing.rehearse()
        if pause := self.publisher.rehearse():
            self._rehearse.again_in(pause)
        else:
            self.rehearsed = connection.connection

    def _look_back(self, wait: float) -> float:
        """Use some of a wait to look at the past; return the rest, or 0 if work was found."""
        if not self.lookout.narrow:
            return wait
        begun = time.monotonic()
        found = self.lookout.look_back(wait / 2)
        rest = max(begun + wait - time.monotonic(), 0.0)
        return 0.0 if found else min(rest, LOOK_BACK_EVERY)
