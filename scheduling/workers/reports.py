"""Celery's reports in a worker's parent: a killed child, a time limit, a cold shutdown."""

from datetime import timedelta
from typing import Any, cast

from celery import current_app, states
from celery.exceptions import TimeLimitExceeded

from scheduling.execution.claiming import Told
from scheduling.execution.finishing import finish
from scheduling.models import Run
from scheduling.runs.outcomes import Outcome, failed_attempt, handed_back
from scheduling.runs.running import run_id_of
from scheduling.workers.leases import claimed_run, held_as


def write(told: Told) -> None:
    """Write what Celery reported of a hint, if it is an end that this process has seen.

    Nothing else that Celery says of a hint (revoked, rejected, expired) moves its run.
    """
    run = _run_of(told) if told.status in (states.FAILURE, states.RETRY) else None
    if run is not None:
        backend: Any = current_app.backend
        exception = backend.exception_to_python(told.error)
        outcome = outcome_of(run, told.status, exception, told.traceback or "")
        finish(run.pk, run.attempt, outcome)


def store_unknown(told: Told) -> None:
    """Store that the task of a plain message is unknown, unless a run has the message's id."""
    run_id, backend = run_id_of(told.task_id), cast("Any", current_app.backend)
    if run_id is None or not Run.objects.filter(pk=run_id).exists():
        backend.store_plain(told.task_id, told.error, told.status, told.traceback)


def hand_back(told: Told, why: str) -> None:
    """Make a run whose child this worker has killed wait again, if it is this worker's still."""
    run = _run_of(told)
    if run is not None:
        finish(run.pk, run.attempt, handed_back(run.task, run.max_attempts, why))


def _run_of(told: Told) -> Run | None:
    """Return the run that the child of this report has claimed.

    A child that was about to be refused, for this was a second hint, has claimed nothing: the run
    is another child's.
    """
    held = held_as(told.task_id, told.attempt, told.claimant)
    return held and claimed_run(held)


def outcome_of(run: Run, status: str, error: BaseException, traceback: str) -> Outcome:
    if status == states.RETRY:
        return handed_back(run.task, run.max_attempts, "its worker was told to end at once")
    # Celery reports a time limit before the child is dead: the next attempt must not meet it.
    delay = timedelta(seconds=2 if isinstance(error, TimeLimitExceeded) else 0)
    return failed_attempt(
        run.task, run.max_attempts, run.failures, error, traceback=traceback, delay=delay
    )
