"""The lease thread of a worker's parent, and the one that stops what its leases do not last for.

It renews the leases of the runs that children work on, ends those that are cancelled or somebody
else's, and writes what Celery reports from the parent. Where the worker is told to end, it gives
the runs that do not end in time back.
"""

import logging
import math
import os
import queue
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from celery.worker import state as worker_state
from django.conf import settings
from django.db import Error, connection

from scheduling import heartbeats
from scheduling.broker import intake
from scheduling.broker.transport import ATTEMPT
from scheduling.execution import attempts, claiming
from scheduling.execution.finishing import finish
from scheduling.logs import event
from scheduling.runs import outcomes
from scheduling.runs.running import run_id_of
from scheduling.workers import reports, stopping
from scheduling.workers.forking import no_fork
from scheduling.workers.leases import Asked, renew, running_here

logger = logging.getLogger(__name__)

STOP_BEFORE = 0.15  # of a lease, before its end: a stop takes a moment
LEAVE_WITHIN = 5.0  # seconds for the rest of a shutdown, when nothing runs any more


class Doing:
    """What a worker says in its heartbeat: what it does, and what it took last."""

    def __init__(self) -> None:
        self._taken = Counter[str]()
        self._last = ""

    def words(self, running: int) -> str:
        taken = Counter(worker_state.total_count)
        if new := taken - self._taken:
            self._taken, self._last = taken, f", the last {next(reversed(new))}"
        words = f"runs {running}; took {taken.total()} in all{self._last}"
        return f"takes no work: {closed}; {words}" if (closed := intake.closed()) else words


class Keeper:
    """Renews every third of a lease, and writes reports as they come."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._parent = os.getpid()
        self._reports: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._renewed = -math.inf  # the first thing it does is to say that it is there
        self._ours_until = _ours_from(time.monotonic())
        self._stopped = set[tuple[str, int]]()  # hints whose children were killed for their leases
        self._doing = Doing()
        self._suspects: dict[UUID, Any] = {}
        self._told: dict[UUID, tuple[Any, float]] = {}
        self._end_by = math.inf
        self._gave_up = False

    def take(
        self, task_id: str, attempt: int | None, status: str, error: Any, traceback: str | None
    ) -> bool:
        """Queue what Celery reports of a hint; see `claiming.Reporter`. Does no database work."""
        if os.getpid() != self._parent:
            return attempt is not None
        unknown = isinstance(error, dict) and error.get("exc_type") == "NotRegistered"
        if (attempt is None and not unknown) or run_id_of(task_id) is None:
            return False
        if attempt is not None and (task_id, attempt) in self._stopped:
            why = "its worker could not renew its lease"
            self._reports.put(partial(reports.hand_back, task_id, attempt, why))
        else:
            self._reports.put(partial(reports.write, task_id, attempt, status, error, traceback))
        return True

    def live(self) -> None:
        interval = settings.RUN_LEASE.total_seconds() / 3
        while True:
            hurry = self._suspects or self._told or self._end_by < math.inf
            pause = 1.0 if hurry else self._renewed + interval - time.monotonic()
            with suppress(queue.Empty):
                self._try(partial(self._persist, self._reports.get(timeout=max(pause, 0.05))))
            if hurry or time.monotonic() > self._renewed + interval:
                self._try(self._tend)
            if time.monotonic() > self._end_by:
                self._try(self._give_up)

    def keep_within_leases(self) -> None:
        """Stop what runs here before its leases end, unless they have been renewed.

        In a thread of its own: just then the lease thread waits for Postgres.
        """
        while True:
            time.sleep(max(self._ours_until - time.monotonic(), 0.05))
            if time.monotonic() >= self._ours_until:
                self._try(self._stop_all)

    def shut_down(self, how: str = "Warm", **_: Any) -> None:
        """Note that the worker was told to end. Called in a signal handler."""
        attempts.worker_ends[0] = 1
        grace = settings.SHUTDOWN_GRACE.total_seconds()
        if how == "Cold":
            if stopping.can_stop_one(self._worker):
                return  # Celery kills the children, and reports each
            grace = 0.0
        self._end_by = min(self._end_by, time.monotonic() + grace)
        self._reports.put(lambda: None)  # wakes the thread

    def drain(self, **_: Any) -> None:
        """Write what is still queued, at the worker's end, within a few seconds."""
        until = time.monotonic() + 5
        while not self._reports.empty() and time.monotonic() < until:
            time.sleep(0.02)
        with suppress(Error):
            heartbeats.farewell(claiming.worker_name)

    def _persist(self, report: Callable[[], None]) -> None:
        claiming.patiently(report, settings.RUN_LEASE, guard=no_fork)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:
            logger.exception("lease_thread_error")
            time.sleep(0.5)

    def _tend(self) -> None:
        """Renew the leases of what runs here; end what is cancelled or not ours any more."""
        begun, running = time.monotonic(), running_here()
        try:
            with no_fork:
                asked, elsewhere = renew(running)
                self._renewed, self._ours_until = begun, _ours_from(begun)
                heartbeats.pulse(claiming.worker_name, "worker", self._doing.words(len(running)))
            self._cancel(asked, running)
            self._stop_if_still_running({run_id: running[run_id] for run_id in elsewhere})
        except Error as error:
            event(logger, "leases_not_renewed", level=logging.WARNING, error=error)
            with no_fork:
                connection.close()
            time.sleep(0.5)

    # --- What must not go on ---------------------------------------------------------------------

    def _cancel(self, asked: dict[UUID, Asked], running: dict[UUID, Any]) -> None:
        """Tell the jobs whose runs are cancelled; kill those that go on for the grace time."""
        self._told = {run_id: told for run_id, told in self._told.items() if run_id in asked}
        for run_id, (attempt, by) in asked.items():
            request, since = self._told.get(run_id, (None, 0.0))
            if request is not running[run_id]:
                event(logger, "cancel_told", run=run_id, by=by)
                self._told[run_id] = running[run_id], time.monotonic()
                if stopping.can_stop_one(self._worker):
                    stopping.tell(running[run_id])
            elif time.monotonic() - since > settings.CANCEL_GRACE.total_seconds():
                self._stop(request, stopping.stop_running, partial(self._end, run_id, attempt, by))

    def _end(self, run_id: UUID, attempt: int, by: str) -> None:
        with no_fork:
            finish(run_id, attempt, outcomes.cancelled(by))

    def _stop_if_still_running(self, elsewhere: dict[UUID, Any]) -> None:
        """Stop those that were not ours a second ago either.

        An attempt that has just ended with a retry looks like one that was lost, until the child's
        answer has reached this process.
        """
        for run_id, request in elsewhere.items():
            if self._suspects.get(run_id) is request:
                self._stop(request, stopping.stop)
        self._suspects = elsewhere

    def _stop(
        self,
        request: Any,
        kill: Callable[[list[Any]], list[Any]],
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """End the execution of one run: its child is killed, or, without children, everything."""
        if stopping.can_stop_one(self._worker):
            if kill([request]):
                then()
            return
        then()
        others = [other for other in running_here().values() if other is not request]
        stopping.hand_back(others, "its worker had to end for another run's sake", stopping.OVERLAP)
        stopping.start_anew(self._worker, f"run {request.id} must end; this pool cannot stop one")

    def _stop_all(self) -> None:
        """Stop what this worker may not own any more: the ledger cannot be asked."""
        running, stopped_at = list(running_here().values()), time.monotonic()
        if stopping.can_stop_one(self._worker):
            self._stopped = {(request.id, request.request_dict[ATTEMPT]) for request in running}
            stopping.stop(running)
        elif running:
            stopping.start_anew(self._worker, "its leases run out; this pool cannot stop runs")
        # What is claimed from now on has a lease of its own.
        self._ours_until = max(self._ours_until, _ours_from(stopped_at))

    def _give_up(self) -> None:
        """Hand back what did not end within the grace time of a shutdown; then see to the end."""
        if self._gave_up:
            self._leave()
        self._gave_up, self._end_by = True, time.monotonic() + LEAVE_WITHIN
        running, overlap = list(running_here().values()), stopping.OVERLAP
        if stopping.can_stop_one(self._worker):
            running, overlap = stopping.stop_running(running), timedelta(0)
        why = "its worker was told to end, and it did not end in time"
        handed = stopping.hand_back(running, why, overlap)
        event(logger, "runs_handed_back", level=logging.WARNING, runs=handed)
        if not stopping.can_stop_one(self._worker):
            self._leave()

    def _leave(self) -> None:
        """End the process: its threads cannot be stopped, or its shutdown hangs."""
        event(logger, "worker_exits", level=logging.WARNING)
        with suppress(Error), no_fork:
            heartbeats.farewell(claiming.worker_name)
        os._exit(0)


def _ours_from(renewed: float) -> float:
    """Return until when (monotonic) that is ours whose leases were renewed, or begun, then."""
    return renewed + settings.RUN_LEASE.total_seconds() * (1 - STOP_BEFORE)
