"""Celery's reports in a worker's parent: a killed child, a time limit, a cold shutdown."""

from datetime import timedelta
from typing import Any, cast

from celery import current_app, states
from celery.exceptions import TimeLimitExceeded

from scheduling.execution.finishing import finish
from scheduling.models import Run
from scheduling.runs.outcomes import Outcome, failed_attempt, handed_back
from scheduling.runs.running import run_id_of
from scheduling.worker_process import Report
from scheduling.workers.leases import claimed_run, taken_hint


def write(report: Report, worker: str) -> None:
    """Write Celery's report of a hint, if it is an end that this process has seen.

    Other reports of a hint (revoked, rejected, expired) do not move its run.
    """
    run = _run_of(report, worker) if report.status in (states.FAILURE, states.RETRY) else None
    if run is not None:
        backend: Any = current_app.backend
        exception = backend.exception_to_python(report.error)
        outcome = outcome_of(run, report.status, exception, report.traceback or "")
        finish(run.pk, run.attempt, outcome)


def store_unknown(report: Report) -> None:
    """Store that the task of a plain message is unknown, unless a run has the message's id."""
    run_id, backend = run_id_of(report.task_id), cast("Any", current_app.backend)
    if run_id is None or not Run.objects.filter(pk=run_id).exists():
        backend.store_plain(report.task_id, report.error, report.status, report.traceback)


def hand_back(report: Report, worker: str, why: str) -> None:
    """Make a run whose child this worker has killed wait again, if it is this worker's still."""
    run = _run_of(report, worker)
    if run is not None:
        finish(run.pk, run.attempt, handed_back(run.task, run.max_attempts, why))


def _run_of(report: Report, worker: str) -> Run | None:
    """Return the run that the child of this report has claimed.

    A child that was about to be refused, for this was a second hint, has claimed nothing: the run
    is another child's.
    """
    hint = taken_hint(report.task_id, report.attempt, report.claimant)
    return hint and claimed_run(hint, worker)


def outcome_of(run: Run, status: str, error: BaseException, traceback: str) -> Outcome:
    if status == states.RETRY:
        return handed_back(run.task, run.max_attempts, "its worker had to stop at once")
    # Celery reports a time limit before the child is dead: the next attempt must not meet it.
    delay = timedelta(seconds=2 if isinstance(error, TimeLimitExceeded) else 0)
    return failed_attempt(
        run.task, run.max_attempts, run.failures, error, traceback=traceback, delay=delay
    )
