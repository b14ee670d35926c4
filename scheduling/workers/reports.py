"""What Celery learns in the parent of a worker: a killed child, a time limit, a cold shutdown."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from celery import current_app, states
from celery.exceptions import TimeLimitExceeded

from scheduling.celery_app.control import BY
from scheduling.execution import claiming, waiting
from scheduling.execution.claiming import Told
from scheduling.execution.finishing import finish
from scheduling.models import Run, State
from scheduling.runs.outcomes import Outcome, failed_attempt, handed_back, text_of
from scheduling.workers.leases import claimed_run, held_as


def write(told: Told) -> None:
    """Write what Celery reported: of a hint, or of a message whose task is unknown."""
    backend: Any = current_app.backend
    if told.attempt is None:
        task = str(told.error["exc_message"][0])
        if not waiting.hand_back_unknown(UUID(told.task_id), task, claiming.worker_name):
            backend.store_plain(told.task_id, told.error, told.status, told.traceback)
        return
    run = _run_of(told)
    if run is not None:
        exception = backend.exception_to_python(told.error)
        outcome = outcome_of(run, told.status, exception, told.traceback or "")
        finish(run.pk, run.attempt, outcome)
    elif told.status == states.REVOKED:  # this worker will drop every hint of it
        waiting.cancel_waiting(UUID(told.task_id), by=BY, attempt=told.attempt)


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
    if status == states.REVOKED:
        return Outcome(State.CANCELLED, text_of(error))
    # Celery reports a time limit before the child is dead: the next attempt must not meet it.
    delay = timedelta(seconds=2 if isinstance(error, TimeLimitExceeded) else 0)
    return failed_attempt(
        run.task, run.max_attempts, run.failures, error, traceback=traceback, delay=delay
    )
