"""What the parent process of a worker adds to Celery's: leases, and endings it alone can see.

A thread renews the leases of the runs its children work on and writes the outcomes that Celery
reports from the parent (a killed child, a time limit, a cold shutdown). The consumer's loop itself
never waits for the database.
"""

import logging
import math
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from celery import bootsteps, states
from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.exceptions import TimeLimitExceeded
from celery.signals import worker_shutdown
from celery.worker import state as worker_state
from celery.worker.request import Request
from django.conf import settings
from django.db import Error, connection

from scheduling import execution, finishing, heartbeats, waiting
from scheduling.execution import ATTEMPT
from scheduling.finishing import Outcome, failed_attempt, finish
from scheduling.ids import uuid7
from scheduling.logs import event
from scheduling.models import Run, State
from scheduling.running import run_id_of

logger = logging.getLogger(__name__)

# A child that is forked while a thread connects to Postgres inherits libpq's locks as they are,
# and hangs in its own first connect. So no fork happens while the lease thread uses the database.
_no_fork = threading.Lock()
os.register_at_fork(
    before=_no_fork.acquire, after_in_parent=_no_fork.release, after_in_child=_no_fork.release
)


class HintRequest(Request):
    """A request that acknowledges hints as soon as a child has them: leases bring work back."""

    def on_accepted(self, pid: Any, time_accepted: float) -> None:
        super().on_accepted(pid, time_accepted)
        if ATTEMPT in self.request_dict:
            self.acknowledge()


class LeaseKeeper(bootsteps.StartStopStep):
    """Starts the lease thread with the worker; it lives until the process ends.

    It must outlive the pool: runs that a warm shutdown waits for need their leases.
    """

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        execution.worker_name = f"{worker.hostname}:{os.getpid()}:{uuid7().hex[-8:]}"

    def start(self, worker: Any) -> None:
        keeper = Keeper(worker)
        execution.reporter = keeper.take
        threading.Thread(target=keeper.live, name="leases", daemon=True).start()
        worker_shutdown.connect(keeper.drain, weak=False)


class Keeper:
    """The lease thread: renews every third of a lease, and writes reports as they come."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._parent = os.getpid()
        self._reports: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._renewed = -math.inf  # the first thing it does is to say that it is there
        self._suspects: dict[UUID, Any] = {}

    def take(
        self, task_id: str, attempt: int | None, status: str, error: Any, traceback: str | None
    ) -> bool:
        """Queue what Celery reports of a hint; see `execution.Reporter`. Does no database work."""
        if os.getpid() != self._parent:
            return attempt is not None
        unknown = isinstance(error, dict) and error.get("exc_type") == "NotRegistered"
        if (attempt is None and not unknown) or run_id_of(task_id) is None:
            return False
        self._reports.put(lambda: self._write(task_id, attempt, status, error, traceback))
        return True

    def live(self) -> None:
        interval = settings.RUN_LEASE.total_seconds() / 3
        while True:
            pause = 1.0 if self._suspects else self._renewed + interval - time.monotonic()
            with suppress(queue.Empty):
                self._try(partial(self._persist, self._reports.get(timeout=max(pause, 0.05))))
            if self._suspects or time.monotonic() > self._renewed + interval:
                self._try(self._tend)

    def drain(self, **_: Any) -> None:
        """Write what is still queued, at the worker's end, within a few seconds."""
        until = time.monotonic() + 5
        while not self._reports.empty() and time.monotonic() < until:
            time.sleep(0.02)
        with suppress(Error):
            heartbeats.farewell(execution.worker_name)

    def _persist(self, report: Callable[[], None]) -> None:
        execution.patiently(report, settings.RUN_LEASE, guard=_no_fork)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:
            logger.exception("lease_thread_error")
            time.sleep(0.5)

    # --- Reports --------------------------------------------------------------------------------

    def _write(
        self, task_id: str, attempt: int | None, status: str, error: Any, traceback: str | None
    ) -> None:
        if attempt is None:
            task = str(error["exc_message"][0])
            if not waiting.hand_back_unknown(UUID(task_id), task, execution.worker_name):
                self._worker.app.backend.store_plain(task_id, error, status, traceback)
            return
        run = Run.objects.filter(
            pk=task_id, attempt=attempt, state=State.RUNNING, worker=execution.worker_name
        ).first()
        if run is not None:
            finish(run.pk, attempt, self._outcome(run, status, error, traceback))

    def _outcome(self, run: Run, status: str, error: Any, traceback: str | None) -> Outcome:
        exception = self._worker.app.backend.exception_to_python(error)
        text = f"{type(exception).__name__}: {exception}"
        if status == states.RETRY:
            return Outcome(State.SCHEDULED, f"handed back by its worker: {text}")
        if status == states.REVOKED:
            return Outcome(State.CANCELLED, text)
        # Celery reports a time limit before the child is dead: the next attempt must not meet it.
        delay = timedelta(seconds=2 if isinstance(exception, TimeLimitExceeded) else 0)
        return failed_attempt(
            run.task, run.max_attempts, run.failures, exception, traceback=traceback or "",
            delay=delay,
        )  # fmt: skip

    # --- Leases ---------------------------------------------------------------------------------

    def _tend(self) -> None:
        """Renew the leases of what runs here; stop what is cancelled or not ours any more."""
        running = self._running()
        try:
            with _no_fork:
                cancelled, elsewhere = renew(running)
                heartbeats.pulse(execution.worker_name, "worker", f"runs {len(running)}")
            self._renewed = time.monotonic()
            for run_id in cancelled:
                self._stop(run_id, running[run_id])
            self._stop_if_still_running({run_id: running[run_id] for run_id in elsewhere})
        except Error as error:
            event(logger, "leases_not_renewed", level=logging.WARNING, error=error)
            with _no_fork:
                connection.close()
            if time.monotonic() - self._renewed > settings.RUN_LEASE.total_seconds():
                self._stop_all()
                self._renewed = time.monotonic()
            time.sleep(0.5)

    def _stop_if_still_running(self, elsewhere: dict[UUID, Any]) -> None:
        """Stop those that were not ours a second ago either.

        An attempt that has just ended with a retry looks like one that was lost, until the child's
        answer has reached this process.
        """
        for run_id, request in elsewhere.items():
            if self._suspects.get(run_id) is request:
                self._stop(run_id, request)
        self._suspects = elsewhere

    def _running(self) -> dict[UUID, Any]:
        """Return what children work on. Of two hints of one run the first began: it has the run.

        Celery's own map of requests forgets a run when a second hint of it ends; this set does not.
        """
        running: dict[UUID, Any] = {}
        for request in sorted(_active_requests(), key=lambda request: request.time_start or 0):
            if ATTEMPT in request.request_dict and (run_id := run_id_of(request.id)):
                running.setdefault(run_id, request)
        return running

    def _stop(self, run_id: UUID, request: Any) -> None:
        """End the execution of one run: its child is killed, or, without children, everything."""
        if not isinstance(self._worker.pool, PreforkPool):
            event(logger, "worker_exits", level=logging.CRITICAL, run=run_id,
                  why="this pool cannot stop one run")  # fmt: skip
            os.kill(os.getpid(), signal.SIGKILL)
        event(logger, "run_stopped", level=logging.WARNING, run=run_id, pid=request.worker_pid)
        with suppress(ProcessLookupError):
            os.kill(request.worker_pid, signal.SIGKILL)

    def _stop_all(self) -> None:
        for run_id, request in self._running().items():
            self._stop(run_id, request)


def _active_requests() -> list[Any]:
    while True:
        try:
            return list(worker_state.active_requests)
        except RuntimeError:  # the main thread added one meanwhile
            continue


RENEW = """
UPDATE scheduling_run SET lease_expires_at = clock_timestamp() + %(lease)s::interval
 WHERE id = ANY (ARRAY(
        SELECT id FROM scheduling_run
         WHERE id = ANY(%(ids)s) AND state = 'running' AND worker = %(worker)s
         ORDER BY id FOR NO KEY UPDATE SKIP LOCKED))
 RETURNING id, attempt, cancel_requested_by
"""


def renew(running: dict[UUID, Any]) -> tuple[list[UUID], list[UUID]]:
    """Renew the leases of these hints' runs.

    Returns:
        The runs whose cancellation was asked for, which are final now, and those that are at a
        later attempt than their hint: somebody else's. A hint whose run is not claimed yet, or has
        ended just now, is neither.
    """
    if not running:
        return [], []
    parameters: dict[str, Any] = {
        "ids": list(running),
        "worker": execution.worker_name,
        "lease": settings.RUN_LEASE,
    }
    with connection.cursor() as cursor:
        cursor.execute(RENEW, parameters)
        ours = {row[0]: row[1:] for row in cursor.fetchall()}
    cancelled = [
        run_id
        for run_id, (attempt, by) in ours.items()
        if by and finish(run_id, attempt, finishing.cancelled(by))
    ]
    others = Run.objects.filter(pk__in=running.keys() - ours.keys()).values_list("pk", "attempt")
    elsewhere = [
        run_id for run_id, attempt in others if attempt > running[run_id].request_dict[ATTEMPT]
    ]
    return cancelled, elsewhere
