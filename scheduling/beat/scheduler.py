"""The Celery scheduler that beat runs: every tick asks the ledger for due work.

`celery -A config beat` builds it (settings.CELERY_BEAT_SCHEDULER) and calls `tick` for ever. Any
number of beats may run: each step locks the rows it works on and skips those that others hold.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from celery import beat
from django.conf import settings
from django.db import Error, connection, transaction

from scheduling import heartbeats
from scheduling.beat import clock_steps, dispatch, escalation, firing, lost_leases, upkeep
from scheduling.beat.looking import Look, Lookout
from scheduling.beat.patient import REDIS_AWAY, Bell, PatientBroker
from scheduling.beat.slices import Reach, Rests
from scheduling.execution import waiting
from scheduling.failures import alerts, groups
from scheduling.history import backfill_pace
from scheduling.logs import event
from scheduling.models import Priority
from scheduling.postgres import pooler, silence
from scheduling.postgres.sql import (
    going_on,
    is_away,
    is_conflict,
    statement_timeout,
    was_ended,
    was_timed_out,
)
from scheduling.runs.hints import Lane
from scheduling.schedules import from_code, last_runs, planning

logger = logging.getLogger(__name__)

T = TypeVar("T")

TICK_MIN = 0.008  # seconds from one tick to the next, but for a ring: what comes due shares a tick
SLEEP_MAX = 1.0  # seconds without a look at the ledger, at most
BUSY_MAX = 1.0  # seconds of full batches before the rarer steps get their turn
LOCKED_PAUSE = 0.05  # seconds between looks at what is due and somebody holds
LOOK_BACK_EVERY = 0.1  # seconds between looks at the past, where looks are narrow
SILENT_AFTER = 6.0  # seconds without an answer after which a connection to the ledger is hung up
PAUSE_MAX = 5.0  # seconds between tries while a service is away
COPY_EVERY = 60.0  # seconds between copies of last runs to PeriodicTask
COPY_BATCH = 200  # schedules at a time
COPY_PAUSE = 0.05  # seconds between batches, where nothing is due
SIGN_IN_EVERY = 15.0  # seconds between notes in Redis that this beat is there
TELL_SHARED_EVERY = 600.0  # seconds between lines about another ledger in the same Redis
PULSE_EVERY = 5.0  # seconds between heartbeats
RELEASE_EVERY = 1.0  # seconds between looks at held runs, which the ends of others let go
ORPHANS_EVERY = 1.0  # seconds between looks for plans without a schedule, where one is overdue
RESEND_EVERY = 3.0  # seconds between looks for lost hints, at least
RESEND_SHARE = 20  # and this many times what the last look took: long queues are looked at less
RESEND_WITHIN = 8.0  # seconds that a look for lost hints may wait for a herd to be fired

HERD = 8  # full batches, after which they are longer
LONG_BATCH = 2 * firing.BATCH
LANES_MAX = 50  # the latest lanes that schedules were fired into, and may be again

# Whatever row a user's transaction holds, beat goes on with the others. And what it looks for has
# an index, however small a table was when the statement was planned. While Postgres sends an answer
# that nobody reads, none of its own time-outs acts; the kernel's then ends the connection.
SESSION = "SET lock_timeout = '2s'; SET enable_seqscan = off; SET tcp_user_timeout = '8s'"


WAIT_BRIEFLY = "SET LOCAL lock_timeout = '2s'"


class Scheduler(beat.Scheduler):
    """The scheduler that `celery beat` runs; it overrides `tick` and never uses Celery's heap."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._broker = PatientBroker()
        self._pushes = dispatch.Pushes(self._broker)
        self._bell = Bell()
        self._pause = 0.0
        self._redis_error: Exception | None = None  # of this tick
        self._next_in = 0.0
        self._lookout = Lookout()
        self._silence = lost_leases.SilenceWatch()
        self._prepared: Any = None  # the connection that SESSION was said to
        self._rests = Rests()
        self._held = Reach(waiting.FIRST_ID, waiting.LAST_ID)
        self._full_batches = 0  # the last ones, one after the other
        self._newest = False
        self._rehearsed: Any = None  # the connection that a batch has been rehearsed on
        self._rehearse_at = 0.0
        self._resend_at = 0.0
        self._resend_by = time.monotonic() + RESEND_WITHIN
        self._age_at = 0.0
        self._release_at = 0.0
        self._orphans_at = 0.0
        self._sign_in_at = self._tell_shared_at = 0.0
        self._shared = ""
        self._copy_at = time.monotonic() + COPY_EVERY
        self._last_fired: set[int] = set()
        self._to_copy: set[int] = set()
        self._name = heartbeats.new_name("beat")
        self._pulse_at = 0.0
        self._fired_in_all = 0
        super().__init__(*args, **kwargs)
        default_queue = str(self.app.conf.task_default_queue)
        self._lanes = [Lane(default_queue, Priority.MEDIUM)]

    def setup_schedule(self) -> None:
        """Schedules are rows; those that code has are written there after `migrate`."""
        silence.waits.watch(seconds=SILENT_AFTER)
        self._silence.heard()
        self._compare_with_code()
        upkeep.begin()

    def _compare_with_code(self) -> None:
        """Warn if the ledger does not hold what this beat's code says of its schedules."""
        try:
            with silence.waits, going_on(logger, "code_schedules_differ"):
                done = from_code.compare()
                lines = [*done.lines, *done.left]
                if lines:
                    event(logger, "code_schedules_differ", level=logging.WARNING, count=len(lines),
                          first=lines[0], advice="manage.py schedule sync")  # fmt: skip
        except Error:  # the first tick tells of a database that is away
            connection.close()

    def tick(self, *_: Any, **__: Any) -> float:
        """Do all that is due, then sleep until the next instant, a ring, or a second has passed.

        What can be waited out never ends the process: while the database is away, this logs, pauses
        and tries again. While Redis is away, all goes on but what needs it.

        Returns:
            0: the sleeping is done here, where a ring ends it.
        """
        begun = time.monotonic()
        try:
            seconds = self.run_once()
        except REDIS_AWAY as error:
            self._broker.missed(error)
            seconds = self._next_in if error is self._redis_error else PAUSE_MAX
        except Exception as error:
            connection.close()
            if is_away(error) or was_ended(error):
                # As in a worker: what is waited out is no error yet, and `health` tells of beats.
                seconds = self._backed_off(
                    "conflict_retried" if is_conflict(error) else "database_away",
                    error,
                    level=logging.WARNING,
                )
            else:
                logger.exception("tick_failed")
                seconds = self._backed_off("tick_failed", None)
        else:
            self._pause = 0.0
        seconds = max(seconds, begun + TICK_MIN - time.monotonic())
        if seconds > 0:
            for waited in self._bell.wait(seconds):
                self._lookout.heard(waited)
        return 0

    def run_once(self) -> float:
        """Do all that is due now; return the seconds until there may be more, at most one.

        Raises what is wrong with Redis, or with the way there, when all else has been done.
        """
        self._redis_error = None
        self._next_in = self._do_all()
        if self._redis_error is not None:
            raise self._redis_error
        return self._next_in

    def _do_all(self) -> float:
        look = self._look()
        self._pulse(look)
        repaired = self._recover(look)
        raised = self._raise(look) + self._settle_failures(look)
        next_due, busy_until = look.next_due_in, time.monotonic() + BUSY_MAX
        try:
            while True:
                planned = self._plan() if look.to_plan else 0
                due = bool(planned) or (next_due is not None and next_due <= 0)
                published = self._publish(due=due)
                fired = self._fire(published and published.room) if due else 0
                self._silence.heard()
                hints = published.hints if published else 0
                full = max(planned, fired, hints) >= planning.BATCH
                if not full or time.monotonic() >= busy_until:
                    break
        finally:
            self._asking_redis(self._pushes.end)
        if self._asks_redis():
            self._asking_redis(partial(self._resend, look, busy=full))
        if self._asks_redis() and time.monotonic() >= self._sign_in_at and not full:
            self._sign_in()
        self._copy_last_runs()
        if next_due is not None and next_due < -SLEEP_MAX and not (full or planned):
            self._remove_due_orphans()
        if full or planned or fired or hints or raised or repaired:
            return 0.0
        if next_due is not None and next_due <= 0:
            next_due = LOCKED_PAUSE
        elif self._rehearsed is not connection.connection and time.monotonic() >= self._rehearse_at:
            self._rehearse()
            return 0.0
        next_in = published.next_in if published else None
        waits = [SLEEP_MAX, next_due, next_in, COPY_PAUSE if self._to_copy else None]
        return self._look_back(max(min(wait for wait in waits if wait is not None), 0.0))

    def _remove_due_orphans(self) -> None:
        """Remove due plans without a schedule, which nothing fires: they fill the batches."""
        if time.monotonic() >= self._orphans_at:
            planning.remove_due_orphans()
            self._orphans_at = time.monotonic() + ORPHANS_EVERY

    def _look(self) -> Look:
        if connection.connection is None or connection.connection is not self._prepared:
            self._prepare()
        asked = time.monotonic()
        look = self._lookout.look()
        if step := self._silence.said(look.now, asked):
            self._live_through(step)
        return look

    def _live_through(self, step: float) -> None:
        """Set right what a step of the ledger's clock has left behind."""
        self._lookout.heard(abs(step))
        if step < 0:
            with going_on(logger, "repair_failed"):
                clock_steps.settle_queued()

    def _look_back(self, wait: float) -> float:
        """Use some of a wait to look at the past; return what is left of it, 0 if work is there."""
        if not self._lookout.narrow:
            return wait
        begun = time.monotonic()
        found = self._lookout.look_back(wait / 2)
        rest = max(begun + wait - time.monotonic(), 0.0)
        return 0.0 if found else min(rest, LOOK_BACK_EVERY)

    def _prepare(self) -> None:
        """Make a connection beat's own: what its statements keep to, and how long each may take."""
        connection.ensure_connection()
        if not pooler.is_behind(connection.connection):  # else it would be another client's, too
            with silence.waits, connection.cursor() as cursor:
                cursor.execute(SESSION)
        silence.time_each(connection.connection)
        self._prepared = connection.connection

    def _rehearse(self) -> None:
        """Do, while nothing is due, what takes long when it is done for the first time.

        Else what first comes due, and that may be a herd, is some 50 ms later.
        """
        firing.rehearse()
        if not self._broker.is_there():
            self._rehearse_at = time.monotonic() + PAUSE_MAX
            return
        try:
            self._broker.rehearse(self._lanes[0])
        except REDIS_AWAY as error:  # nothing needs it yet: what comes due will say so
            logger.debug("redis_away", exc_info=error)
            self._rehearse_at = time.monotonic() + PAUSE_MAX
        else:
            self._rehearsed = connection.connection

    def _asks_redis(self) -> bool:
        """Whether Redis is there, as far as known: then it is asked in this tick."""
        return self._redis_error is None and self._broker.is_there()

    def _asking_redis(self, act: Callable[[], T]) -> T | None:
        """Return act(); or None, and note what is wrong, if Redis is away."""
        try:
            return act()
        except REDIS_AWAY as error:
            self._redis_error = error
            self._silence.not_asked()
            return None

    def _plan(self) -> int:
        plans = planning.make_plans(planning.BATCH, self._lookout.lows["to_plan"])
        for plan in plans.made:
            if plan.next_due_at is not None:  # from the time of the edit on, so it may have passed
                self._lookout.lower("due", plan.next_due_at)
        return plans.needed

    def _publish(self, *, due: bool) -> dispatch.Published | None:
        """Publish what waits, and look what room the lanes of what is due have, as far as known.

        Returns:
            None if Redis is away: every occurrence has its row, whatever becomes of its hint.
        """
        if not self._asks_redis():
            return None
        others, coming = self._lanes if due else (), self._pushes.coming()
        lanes = self._lookout.lanes
        act = partial(dispatch.publish, self._broker, others=others, coming=coming, lanes=lanes)
        return self._asking_redis(act)

    def _fire(self, room: Mapping[Lane, int] | None) -> int:
        """Fire a batch, and push what is queued at once; `room` is None where Redis is away."""
        # Short batches first: that is sooner, and other beats may share. Long ones cost less.
        limit = firing.BATCH if self._full_batches < HERD else LONG_BATCH
        low = self._lookout.after("due")
        fired = firing.fire_due(low, limit, room, newest=self._newest)
        self._full_batches = self._full_batches + 1 if fired.plans >= limit else 0
        # Between the batches of what catches up, and is due still, what is due now has its turn.
        self._newest = fired.behind is not None and not self._newest
        if fired.behind is not None:
            self._lookout.lower("due", fired.behind)
        for lane, run_at in fired.lanes.items():
            if run_at is not None:
                self._lookout.lanes.add(lane, run_at)
        if self._redis_error is not None:
            self._broker.unsure.update(fired.hints)
        elif fired.hints and self._full_batches:
            self._asking_redis(partial(self._pushes.begin, fired.hints))
        else:
            self._asking_redis(partial(dispatch.push, self._broker, fired.hints))
        if room is not None and not room.keys() >= fired.lanes.keys() and self._asks_redis():
            # What went into lanes that were not known yet.
            lanes = self._lookout.lanes
            self._asking_redis(partial(dispatch.publish, self._broker, lanes=lanes))
        self._lanes = list(dict.fromkeys([*fired.lanes, *self._lanes]))[:LANES_MAX]
        self._last_fired.update(fired.schedule_ids)
        self._fired_in_all += len(fired.schedule_ids)
        if fired.one_off_ids:
            last_runs.copy(fired.one_off_ids)
        return fired.plans

    def _recover(self, look: Look) -> bool:
        """Repair in the ledger what needs no Redis; each step runs only where `look` found work.

        Whatever is wrong with one, the others and the schedules go on.

        Returns:
            Whether a batch was full, so that there may be more.
        """
        full, lows = False, self._lookout.lows
        lost = partial(lost_leases.recover_lost_leases, self._silence, low=lows["leases"])
        ahead = partial(lost_leases.recover_leases_ahead, self._silence)
        steps: tuple[tuple[str, bool, Callable[[], int]], ...] = (
            ("leases", look.leases_lost, lost),
            ("ahead", self._silence.looks_ahead(), ahead),
            ("expired", look.expired, partial(waiting.expire_waiting, low=lows["expired"])),
            ("held", look.held and time.monotonic() >= self._release_at, self._release),
            ("backfills", look.backfills_held, backfill_pace.release),
        )
        for name, wanted, step in steps:
            if wanted and self._rests.over(name):
                with going_on(logger, "repair_failed"):
                    full |= self._paced(name, step) >= waiting.BATCH
                self._silence.heard()
        return full

    def _paced(self, name: str, step: Callable[[], int]) -> int:
        """Do a step; where an old snapshot makes it long, and it finds nothing to do, it rests."""
        return self._rests.after(name, step) if self._lookout.narrow else step()

    def _release(self) -> int:
        released = 0
        for first, last in self._held.look():
            try:
                with statement_timeout(self._held.patience), self._waiting_briefly():
                    found = waiting.release_held_of(first, last)
            except Error as error:
                if not was_timed_out(error):
                    raise
                self._held.cut_off()
                continue
            for run in found:
                if run.run_at is not None:
                    self._lookout.lanes.add(Lane(run.queue, run.priority), run.run_at)
            released = max(released, len(found))
        if released < waiting.BATCH:
            self._release_at = time.monotonic() + (0 if self._held.narrow else RELEASE_EVERY)
        return released

    @contextmanager
    def _waiting_briefly(self) -> Iterator[None]:
        """Limit the wait for a row that a user holds, where SESSION could not: behind a pooler."""
        if not pooler.is_behind(connection.connection):
            yield
            return
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(WAIT_BRIEFLY)
            yield

    def _raise(self, look: Look) -> int:
        lanes, lows, raised = self._lookout.lanes, self._lookout.lows, 0
        if look.deadlines and self._rests.over("deadlines"):
            escalate_for_deadlines = partial(
                escalation.escalate_for_deadlines,
                passed=lows["passed"],
                near=lows["near"],
                lanes=lanes,
            )
            raised = self._paced("deadlines", escalate_for_deadlines)
        if time.monotonic() >= self._age_at:
            raised += escalation.escalate_for_age(queued=lows["queued"], lanes=lanes)
            self._age_at = time.monotonic() + escalation.age_every().total_seconds()
        return raised

    def _settle_failures(self, look: Look) -> int:
        """Settle what has failed, before anything fires; return whether there may be more.

        Whatever is wrong with it, schedules go on.
        """
        settled = 0
        with going_on(logger, "failures_not_settled"):
            if look.failed and self._rests.over("failed"):
                settle = partial(groups.settle, self._lookout.after("failed"))
                settled = self._paced("failed", settle)
            if look.news:
                alerts.call()
        return int(settled >= groups.BATCH)

    def _resend(self, look: Look, *, busy: bool) -> None:
        begun = time.monotonic()
        if not look.hints_old:
            self._resend_by = begun + RESEND_WITHIN
        elif begun >= (self._resend_by if busy else self._resend_at):
            dispatch.resend(self._broker, low=self._lookout.lows["queued"])
            took = time.monotonic() - begun
            self._resend_at = begun + max(RESEND_EVERY, RESEND_SHARE * took)
            self._resend_by = self._resend_at + RESEND_WITHIN

    def _sign_in(self) -> None:
        """Say in Redis whose hints these are, and here who else uses the same Redis."""
        self._sign_in_at = time.monotonic() + SIGN_IN_EVERY
        try:
            others = self._broker.sign_in()
        except REDIS_AWAY as error:  # beat says so when it needs Redis for a run
            logger.debug("not_signed_in", exc_info=error)
            self._silence.not_asked()
            return
        self._shared = f"; {heartbeats.SHARED} {', '.join(others)}" if others else ""
        if others and time.monotonic() >= self._tell_shared_at:
            self._tell_shared_at = time.monotonic() + TELL_SHARED_EVERY
            event(logger, "redis_shared", level=logging.WARNING, others=", ".join(others))

    def _copy_last_runs(self) -> None:
        """Copy a few at a time: a minute's fired ones at once would keep what is due waiting."""
        if self._last_fired and not self._to_copy and time.monotonic() >= self._copy_at:
            self._to_copy, self._last_fired = self._last_fired, set()
            self._copy_at = time.monotonic() + COPY_EVERY
        if self._to_copy:
            count = min(COPY_BATCH, len(self._to_copy))
            last_runs.copy([self._to_copy.pop() for _ in range(count)])

    def _pulse(self, look: Look) -> None:
        if time.monotonic() >= self._pulse_at:
            doing = f"fired {self._fired_in_all} in all; looked at {look.now:%H:%M:%S} UTC"
            doing += self._shared
            heartbeats.pulse(self._name, "beat", doing)
            heartbeats.forget_dead()
            self._pulse_at = time.monotonic() + PULSE_EVERY

    def _backed_off(self, name: str, error: object, level: int = logging.ERROR) -> float:
        self._pause = min(max(self._pause * 2, 0.25), PAUSE_MAX)
        event(logger, name, level=level, error=error, pause=self._pause)
        return self._pause

    def should_sync(self) -> bool:
        return False

    def close(self) -> None:
        """Celery calls this from its signal handler, in the midst of anything: close nothing."""

    @property
    def info(self) -> str:
        return f"    . ledger -> {settings.DATABASES['default']['NAME']}"
