"""Stops runs: interrupts a job, kills its child, hands its run back, restarts the worker.

Only the child that has the run may be hit, and a child may have gone on to another run a moment
ago. So it is frozen first. Then the parent looks for its answers. Then it is interrupted, killed,
or thawed unharmed.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import partial
from typing import Any

from celery.concurrency.prefork import TaskPool as PreforkPool
from django.db import Error, connection, transaction

from scheduling.celery_internals import children_of
from scheduling.errors import RunCancelled
from scheduling.execution.finishing import finish
from scheduling.logs import event
from scheduling.models import Run
from scheduling.runs.outcomes import handed_back
from scheduling.runs.running import current
from scheduling.worker_process import process_of
from scheduling.workers.forking import no_fork
from scheduling.workers.leases import active_requests, claimed_run, hint_of

logger = logging.getLogger(__name__)

CANCEL = signal.SIGUSR2  # Celery's children listen to SIGUSR1 for soft time limits
# How long a run waits that was handed back by a process which has not ended yet.
OVERLAP = timedelta(seconds=2)
SETTLED = 0.2  # seconds in which the parent reads the answers of a frozen child


def listen_in_child(**_: Any) -> None:
    """Let a child hear that its run is cancelled: `RunCancelled` is raised in the job's body."""
    signal.signal(CANCEL, _raise_cancelled)


def _raise_cancelled(*_: Any) -> None:
    running = current()
    if running is not None and running.tracked and running.in_body:
        raise RunCancelled("the run was cancelled")


def can_stop_one(worker: Any) -> bool:
    """Return whether this worker's pool can end one run and leave the others alone."""
    return isinstance(worker.pool, PreforkPool)


def interrupt(request: Any) -> None:
    """Raise RunCancelled in the job of this hint, if its run still runs by the ledger."""
    _hit([request], CANCEL, _running_in_the_ledger)


def stop(requests: Iterable[Any]) -> list[Any]:
    """Kill the children that still work on these hints; return the hints whose child was hit."""
    return _killed(_hit(requests, signal.SIGKILL, list))


def stop_running(requests: Iterable[Any]) -> list[Any]:
    """Kill the children of these hints that still run them by the ledger; return those hit."""
    return _killed(_hit(requests, signal.SIGKILL, _running_in_the_ledger))


def _killed(requests: list[Any]) -> list[Any]:
    for request in requests:
        event(logger, "run_stopped", level=logging.WARNING, run=request.id, pid=request.worker_pid)
    return requests


def _hit(
    requests: Iterable[Any], number: int, which: Callable[[list[Any]], list[Any]]
) -> list[Any]:
    """Send a signal to the children that work on hints, and to none that has ended its own.

    `which` chooses among the hints while their children are frozen. Returns those it chose.
    """
    frozen = [request for request in requests if _signal(request, signal.SIGSTOP)]
    try:
        time.sleep(SETTLED)
        active = active_requests()
        chosen = which([request for request in frozen if request in active])
        return [request for request in chosen if _signal(request, number)]
    finally:
        for request in frozen:
            _signal(request, signal.SIGCONT)


def _signal(request: Any, number: int) -> bool:
    try:
        os.kill(request.worker_pid, number)
    except ProcessLookupError:
        return False
    return True


def _running_in_the_ledger(requests: list[Any]) -> list[Any]:
    with no_fork:
        return [request for request in requests if _run_of(request) is not None]


def _run_of(request: Any) -> Run | None:
    hint = hint_of(request)
    return hint and claimed_run(hint, process_of(request.app).name)


# --- All of them ---------------------------------------------------------------------------------


def hand_back(requests: Iterable[Any], why: str, delay: timedelta = timedelta(0)) -> int:
    """Make the runs of these hints wait again, as no child works on them; return how many."""
    handed = 0
    for request in requests:
        with suppress(Error), brief_waits():  # if it fails, the run comes back with its lease
            run = _run_of(request)
            if run is not None:
                outcome = handed_back(run.task, run.max_attempts, why, delay)
                handed += finish(run.pk, run.attempt, outcome)
    return handed


def hand_back_within(seconds: float, requests: list[Any], why: str) -> None:
    """Hand back runs for so many seconds; the remaining ones have to wait for their leases."""
    act = partial(hand_back, requests, why, OVERLAP)
    helper = threading.Thread(target=act, name="hand back", daemon=True)
    helper.start()
    helper.join(seconds)


@contextmanager
def brief_waits() -> Iterator[None]:
    """A transaction of the parent's, which waits for another's lock for a moment only.

    Its threads keep the leases of all runs: one locked row must not hold them up.
    """
    with no_fork, transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '500ms'")
        yield


def start_anew(worker: Any, why: str) -> None:
    """Replace this process by a new one of the same command, under the same process id.

    So a supervisor of the worker, if there is one, has nothing to do. The children are killed:
    their runs must have been handed back, or be lost on purpose.
    """
    event(logger, "worker_restarts", level=logging.CRITICAL, why=why)
    # For good. A pool that forks nothing has nothing to wait for.
    with no_fork if can_stop_one(worker) else nullcontext():
        children = children_of(worker.pool) if can_stop_one(worker) else []
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in children:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # its reader may be gone, and a job may have closed it
                stream.flush()
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606
