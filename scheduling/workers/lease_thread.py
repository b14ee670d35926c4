"""The lease thread of a worker's parent, and the thread that stops runs without a lease.

The lease thread renews the leases of the runs that children work on. It ends runs that are
cancelled or belong to another worker, and writes Celery's reports in the parent. When the worker
shuts down, it hands back the runs that do not end in time.
"""

import logging
import math
import os
import queue
import threading
import time
from collections import Counter, deque
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
from scheduling.broker.intake import Intake
from scheduling.execution import postponing
from scheduling.execution.finishing import finish
from scheduling.logs import event
from scheduling.postgres.identity import ask_ledger_id
from scheduling.postgres.sql import is_away
from scheduling.runs import outcomes
from scheduling.runs.running import current, run_id_of
from scheduling.worker_process import Report, process_of
from scheduling.workers import reports, stopping
from scheduling.workers.forking import no_fork
from scheduling.workers.leases import (
    STOP_BEFORE,
    TakenHint,
    ours_from,
    renew,
    running_here,
    taken_hint,
)
from scheduling.workers.stopping import brief_waits

logger = logging.getLogger(__name__)

SUSPECT_FOR = 2.0  # seconds in which the answer of a child whose run has ended gets here
HURRY = 1.0  # seconds between looks while something is to be settled
REPORT_FOR = 2  # leases for which writing a report is tried: a later one is of no use
ATTEMPTS_END = 2**31  # no attempt has so high a number
LEAVE_WITHIN = 5.0  # seconds for the rest of a shutdown, when nothing runs any more


class Doing:
    """The words of a worker's heartbeat: its activity, and the task that it took last."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._taken = Counter[str]()
        self._last = ""

    def words(self, running: int) -> str:
        taken = Counter(worker_state.total_count)
        if new := taken - self._taken:
            self._taken, self._last = taken, f", the last {next(reversed(new))}"
        words = f"runs {running}; took {taken.total()} in all{self._last}"
        return f"takes no work: {closed}; {words}" if (closed := self._intake.closed()) else words


class LeaseThread:
    """Renews every third of a lease, and writes reports as they come."""

    def __init__(self, worker: Any, name: str, intake: Intake) -> None:
        self._worker = worker
        self._name = name
        self._parent = os.getpid()
        self._thread: threading.Thread | None = None  # the lease thread itself
        self._reports: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._kept = True  # whether all leases that are needed were renewed
        self._unwritten = deque[tuple[Callable[[], object], float]]()  # until when to try
        self._tend_at = 0.0  # the first thing it does is to say that it is there
        self._stopped = set[TakenHint]()  # hints whose children were killed for their leases
        self._doing = Doing(intake)
        self._suspects: dict[TakenHint, float] = {}  # since when
        self._cancelled: dict[TakenHint, float] = {}  # when their jobs were interrupted
        self._end_by = math.inf
        self._gave_up = False

    def take(self, report: Report) -> bool:
        """Queue a report of Celery's about a message. Does no database work."""
        if os.getpid() != self._parent:
            return report.attempt is not None
        if report.attempt is None:
            error = report.error
            if not isinstance(error, dict) or error.get("exc_type") != "NotRegistered":
                return False
            self._reports.put(partial(reports.store_unknown, report))
            return True
        if run_id_of(report.task_id) is None:
            return False
        hint = taken_hint(report.task_id, report.attempt, report.claimant)
        if hint in self._stopped:
            self._stopped.discard(hint)
            why = "its worker could not renew its lease"
            self._reports.put(partial(reports.hand_back, report, self._name, why))
        else:
            self._reports.put(partial(reports.write, report, self._name))
        return True

    def put_back(self, task_id: str, attempt: object, task: str, limit: str, wait: float) -> None:
        """Queue that a hint's run waits in the ledger for its task's rate limit; see `waiting`."""
        run_id = run_id_of(task_id)
        if run_id is None or not isinstance(attempt, int) or not 0 < attempt < ATTEMPTS_END:
            return  # anybody can write to Redis
        reason = f"waits for its turn: rate_limit {limit!r} of task {task}"
        seconds = timedelta(seconds=wait)
        self._reports.put(partial(postponing.put_back, run_id, attempt, task, reason, seconds))

    def take_unknown(self, run_id: UUID, attempt: int, task: str) -> None:
        """Queue that a hint's task is unknown here. Does no database work."""
        self._reports.put(partial(postponing.hand_back_unknown, run_id, attempt, task, self._name))

    def look_soon(self) -> None:
        """Ask the ledger within a second which runs are cancelled: a revoke has arrived."""
        if self._tend_at > time.monotonic() + HURRY:
            self._tend_at = time.monotonic() + HURRY / 2
            self._reports.put(lambda: None)  # wakes the thread

    def store(self, act: Callable[[], object]) -> bool:
        """Queue the storing of a plain message's result, except if a job stores it itself."""
        lease_thread = threading.current_thread() is self._thread
        if os.getpid() != self._parent or lease_thread or current() is not None:
            return False
        self._reports.put(act)
        return True

    def live(self) -> None:
        self._thread = threading.current_thread()
        while True:
            pause = min(self._tend_at, self._end_by) - time.monotonic()
            with suppress(queue.Empty):
                self._write(self._reports.get(timeout=max(pause, 0.05)), REPORT_FOR * _lease())
            if time.monotonic() >= self._tend_at:
                self._try(self._write_again)
                self._try(self._tend)
                hurry = self._suspects or self._cancelled or self._unwritten or not self._kept
                hurry = hurry or self._end_by < math.inf
                self._tend_at = time.monotonic() + min(_lease() / 3, HURRY if hurry else math.inf)
            if time.monotonic() > self._end_by:
                self._try(self._give_up)

    def keep_within_leases(self) -> None:
        """Stop each run before its lease ends, unless that has been renewed.

        In a thread of its own: just then the lease thread may wait for Postgres.
        """
        while True:
            now, running = time.monotonic(), running_here()
            late = {hint: request for hint, request in running.items() if request.ours_until <= now}
            if late:
                self._try(partial(self._stop_late, late))
            until = min((request.ours_until for request in running.values()), default=math.inf)
            time.sleep(max(min(until - time.monotonic(), _lease() / 3), 0.05))

    def shut_down(self, how: str = "Warm", **_: Any) -> None:
        """Note that the worker shuts down. Called in a signal handler."""
        process_of(self._worker.app).note_end()
        grace = settings.SHUTDOWN_GRACE.total_seconds()
        if how == "Cold":
            if stopping.can_stop_one(self._worker):
                return  # Celery kills the children, and reports each
            grace = 0.0
        self._end_by = min(self._end_by, time.monotonic() + grace)
        self._reports.put(lambda: None)  # wakes the thread

    def drain(self, **_: Any) -> None:
        """Write the reports that are still queued, at the worker's end, within a few seconds."""
        until = time.monotonic() + 5
        while (self._unwritten or not self._reports.empty()) and time.monotonic() < until:
            time.sleep(0.02)
        with suppress(Error):
            heartbeats.farewell(self._name)

    def _write(self, report: Callable[[], object], patience: float) -> None:
        """Write a report now, or, if the ledger cannot, again and again for so many seconds."""
        self._unwritten.append((report, time.monotonic() + patience))
        if len(self._unwritten) == 1:
            self._try(self._write_again)
        if self._unwritten:
            self._tend_at = min(self._tend_at, time.monotonic() + HURRY)

    def _write_again(self) -> None:
        """Try again to write reports, for a second at most: leases are to be renewed."""
        begun = time.monotonic()
        for _ in range(len(self._unwritten)):
            report, until = self._unwritten[0]  # it stays there meanwhile: `drain` looks
            written = self._is_written(report)
            self._unwritten.popleft()
            if not written and time.monotonic() < until:
                self._unwritten.append((report, until))
            if time.monotonic() > begun + 1:
                return

    def _is_written(self, report: Callable[[], object]) -> bool:
        try:
            with brief_waits():
                report()
        except Error as error:
            with no_fork:
                connection.close()
            if is_away(error):
                event(logger, "report_waits", level=logging.WARNING, error=error)
                return False
            logger.exception("report_refused")
        except Exception:
            logger.exception("report_refused")
        return True

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:
            logger.exception("lease_thread_error")
            time.sleep(0.5)

    def _tend(self) -> None:
        """Renew the leases of the runs here; end runs that are cancelled or no longer ours."""
        running, self._kept = running_here(), False
        try:
            with no_fork:
                self._open_gate()
                renewed = renew(running, self._name)
                self._kept = renewed.kept
                heartbeats.pulse(self._name, "worker", self._doing.words(len(running)))
            self._cancel(renewed.asked, running)
            self._stop_if_still_running(renewed.lost, running)
        except Error as error:
            event(logger, "leases_not_renewed", level=logging.WARNING, error=error)
            with no_fork:
                connection.close()
            time.sleep(0.5)

    def _open_gate(self) -> None:
        process = process_of(self._worker.app)
        if process.gate is not None:
            process.gate.ledger = ask_ledger_id()
            process.intake.reopen("gate")

    # --- Runs that must end ----------------------------------------------------------------------

    def _cancel(self, asked: dict[TakenHint, str], running: dict[TakenHint, Any]) -> None:
        """Interrupt the jobs of cancelled runs; kill jobs that outlast the grace time."""
        interrupted, self._cancelled = self._cancelled, {}
        for hint, by in asked.items():
            since = self._cancelled[hint] = interrupted.get(hint, time.monotonic())
            if hint not in interrupted:
                event(logger, "cancel_received", run=hint.run_id, by=by)
                if stopping.can_stop_one(self._worker):
                    stopping.interrupt(running[hint])
            elif time.monotonic() - since > settings.CANCEL_GRACE.total_seconds():
                end = partial(self._end, hint, by)
                self._stop(running[hint], stopping.stop_running, end)

    def _end(self, hint: TakenHint, by: str) -> None:
        end = partial(finish, hint.run_id, hint.attempt, outcomes.cancelled(by))
        self._write(end, _lease())

    def _stop_if_still_running(self, lost: list[TakenHint], running: dict[TakenHint, Any]) -> None:
        """Stop runs that have been lost for two seconds.

        An attempt that has just ended looks lost until the child's answer has reached this process.
        """
        now, suspects = time.monotonic(), self._suspects
        self._suspects = {hint: suspects.get(hint, now) for hint in lost}
        for hint, since in self._suspects.items():
            if now - since >= SUSPECT_FOR:
                self._stop(running[hint], stopping.stop)

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

    def _stop_late(self, late: dict[TakenHint, Any]) -> None:
        """Stop runs that may no longer be this worker's: their leases could not be renewed.

        Either the ledger cannot be asked, or another transaction has locked the run's row.
        """
        for request in late.values():
            request.ours_until = ours_from(time.monotonic())  # a stopped one is gone by then
        if stopping.can_stop_one(self._worker):
            self._stopped.update(late)
            stopping.stop(late.values())
            return
        others = [request for hint, request in running_here().items() if hint not in late]
        moment = _lease() * STOP_BEFORE / 3
        stopping.hand_back_within(moment, others, "its worker had to end for another run's sake")
        stopping.start_anew(self._worker, "its leases run out; this pool cannot stop runs")

    def _give_up(self) -> None:
        """Hand back runs that outlast the grace time of a shutdown; then end the process."""
        if self._gave_up:
            self._leave()
        self._gave_up, self._end_by = True, time.monotonic() + LEAVE_WITHIN
        running, overlap = list(running_here().values()), stopping.OVERLAP
        if stopping.can_stop_one(self._worker):
            running, overlap = stopping.stop_running(running), timedelta(0)
        why = "its worker shut down, and it did not end in time"
        handed = stopping.hand_back(running, why, overlap)
        event(logger, "runs_handed_back", level=logging.WARNING, runs=handed)
        if not stopping.can_stop_one(self._worker):
            self._leave()

    def _leave(self) -> None:
        """End the process: its threads cannot be stopped, or its shutdown hangs."""
        event(logger, "worker_exits", level=logging.WARNING)
        with suppress(Error), no_fork:
            heartbeats.farewell(self._name)
        os._exit(0)


def _lease() -> float:
    seconds: float = settings.RUN_LEASE.total_seconds()
    return seconds
