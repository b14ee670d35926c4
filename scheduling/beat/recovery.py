"""The steps of a tick that repair the ledger, and need no Redis."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from django.db import Error

from scheduling.beat import escalation, lost_leases
from scheduling.beat.looking import Look, Lookout
from scheduling.beat.lost_leases import SilenceWatch
from scheduling.beat.session import waiting_briefly
from scheduling.beat.slices import Reach, Rests
from scheduling.beat.timers import Timer
from scheduling.execution import closing, releasing
from scheduling.failures import alerts, groups
from scheduling.history import backfill_pace
from scheduling.postgres.sql import going_on, statement_timeout, was_timed_out
from scheduling.runs.hints import Lane
from scheduling.schedules import planning

logger = logging.getLogger(__name__)

RELEASE_EVERY = 1.0  # seconds between looks at held runs that the ends of others did not release
ORPHANS_EVERY = 1.0  # seconds between looks for due plans without a schedule
OVERDUE = 1.0  # seconds after which a due plan that no beat has fired may have no schedule


class Recovery:
    """Runs a step only if `look` found work for it. A failing step does not stop the others."""

    def __init__(self, lookout: Lookout, silence: SilenceWatch) -> None:
        self.held = Reach(releasing.FIRST_ID, releasing.LAST_ID)
        self.release = Timer()
        self.age = Timer()
        self._lookout, self._silence = lookout, silence
        self._rests = Rests()
        self._orphans = Timer()

    def run(self, look: Look) -> bool:
        """Recover lost leases, expire and release runs; return whether there may be more."""
        full, lows = False, self._lookout.lows
        lost = partial(lost_leases.recover_lost_leases, self._silence, low=lows["leases"])
        ahead = partial(lost_leases.recover_leases_ahead, self._silence)
        steps: tuple[tuple[str, bool, Callable[[], int]], ...] = (
            ("leases", look.leases_lost, lost),
            ("ahead", self._silence.looks_ahead(), ahead),
            ("expired", look.expired, partial(closing.expire_waiting, low=lows["expired"])),
            ("held", look.held and self.release.is_due(), self._release),
            ("backfills", look.backfills_held, backfill_pace.release),
        )
        for name, wanted, step in steps:
            if wanted and self._rests.over(name):
                with going_on(logger, "repair_failed"):
                    full |= self._paced(name, step) >= closing.BATCH
                self._silence.heard()
        return full

    def escalate(self, look: Look) -> int:
        """Escalate runs for their deadlines and for their age; return how many."""
        lanes, lows, escalated = self._lookout.lanes, self._lookout.lows, 0
        if look.deadlines and self._rests.over("deadlines"):
            for_deadlines: Any = partial(
                escalation.escalate_for_deadlines,
                passed=lows["passed"], near=lows["near"], lanes=lanes,
            )  # fmt: skip
            escalated = self._paced("deadlines", for_deadlines)
        if self.age.is_due():
            escalated += escalation.escalate_for_age(queued=lows["queued"], lanes=lanes)
            self.age.again_in(escalation.age_every().total_seconds())
        return escalated

    def settle_failures(self, look: Look) -> bool:
        """Count noted failures before anything fires; return whether there may be more."""
        settled = 0
        with going_on(logger, "failures_not_settled"):
            if look.failed and self._rests.over("failed"):
                settle = partial(groups.settle, self._lookout.after("failed"))
                settled = self._paced("failed", settle)
            if look.news:
                alerts.call()
        return settled >= groups.BATCH

    def remove_due_orphans(self, overdue: float) -> None:
        """Remove due plans without a schedule: they are never fired, and fill the batches."""
        if overdue > OVERDUE and self._orphans.is_due():
            planning.remove_due_orphans()
            self._orphans.again_in(ORPHANS_EVERY)

    def _paced(self, name: str, step: Callable[[], int]) -> int:
        """Run a step; if an old snapshot makes it slow and it finds no work, it rests."""
        return self._rests.after(name, step) if self._lookout.narrow else step()

    def _release(self) -> int:
        released = 0
        for first, last in self.held.look():
            try:
                with statement_timeout(self.held.patience), waiting_briefly():
                    found = releasing.release_held_of(first, last)
            except Error as error:
                if not was_timed_out(error):
                    raise
                self.held.cut_off()
                continue
            for run in found:
                if run.run_at is not None:
                    self._lookout.lanes.add(Lane(run.queue, run.priority), run.run_at)
            released = max(released, len(found))
        if released < releasing.BATCH:
            self.release.again_in(0 if self.held.narrow else RELEASE_EVERY)
        return released
