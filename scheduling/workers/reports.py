"""What Celery learns in the parent of a worker: a killed child, a time limit, a cold shutdown."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from celery import current_app, states
from celery.exceptions import TimeLimitExceeded

from scheduling.celery_app.control import BY
from scheduling.execution import claiming, waiting
from scheduling.execution.finishing import finish
from scheduling.models import Run, State
from scheduling.runs.outcomes import Outcome, failed_attempt, handed_back, text_of


def write(
    task_id: str, attempt: int | None, status: str, error: Any, traceback: str | None
) -> None:
    """Write what Celery reported of a hint (attempt None: of a message of an unknown task)."""
    backend: Any = current_app.backend
    if attempt is None:
        task = str(error["exc_message"][0])
        if not waiting.hand_back_unknown(UUID(task_id), task, claiming.worker_name):
            backend.store_plain(task_id, error, status, traceback)
        return
    run = _running_here(task_id, attempt)
    if run is not None:
        exception = backend.exception_to_python(error)
        finish(run.pk, attempt, outcome_of(run, status, exception, traceback or ""))
    elif status == states.REVOKED:  # this worker will drop every hint of it
        waiting.cancel_waiting(UUID(task_id), by=BY, attempt=attempt)


def hand_back(task_id: str, attempt: int, why: str) -> None:
    """Make a run whose child this worker has killed wait again, if it is this worker's still."""
    run = _running_here(task_id, attempt)
    if run is not None:
        finish(run.pk, attempt, handed_back(run.task, run.max_attempts, why))


def _running_here(task_id: str, attempt: int) -> Run | None:
    return Run.objects.filter(
        pk=task_id, attempt=attempt, state=State.RUNNING, worker=claiming.worker_name
    ).first()


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
