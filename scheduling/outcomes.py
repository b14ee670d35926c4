"""What became of an attempt: from what a job did to the outcome that `finish` writes."""

import random
import sys
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from billiard.common import terminate_handler_fired  # type: ignore[attr-defined]
from celery import states
from celery.exceptions import Ignore, Reject, Retry
from django.conf import settings

from scheduling.finishing import Outcome, failed_attempt, handed_back, text_of
from scheduling.models import State
from scheduling.options import instant_or_seconds
from scheduling.registry import retries_by_itself
from scheduling.running import Again, Claimed, Execution, current

if TYPE_CHECKING:
    from scheduling.jobs import Job

BACKOFF_CAP = timedelta(hours=1)


class PermanentError(Exception):
    """Raised by a job: the run ends as failed with this message, without another attempt."""


class RunCancelled(PermanentError):
    """Raised in a job whose run is cancelled while it runs: its chance to clean up."""


def outcome_of(execution: Execution, claimed: Claimed, returned: Any) -> Outcome:
    """Return what Celery's tracer says became of the attempt."""
    state = returned.info.state if returned.info else states.SUCCESS
    value = returned.info.retval if returned.info else None
    traceback = str(getattr(returned.retval, "traceback", "") or "")
    if execution.again is not None:
        return _once_more(execution, execution.again, value, traceback)
    if state == states.SUCCESS:
        return Outcome(State.SUCCEEDED, result=execution.result)
    if isinstance(value, RunCancelled):
        return Outcome(State.SCHEDULED, "handed back: told to end")  # `finish` knows who asked
    if isinstance(value, Reject):
        return _rejected(value)
    if isinstance(value, Ignore):
        return Outcome(State.SUCCEEDED, reason="the job ended with Ignore: no result")
    if isinstance(value, Retry):
        delay = execution.job.default_retry_delay
        return _once_more(execution, _same_again(execution, claimed, delay), value, traceback)
    text = text_of(value)
    return Outcome(State.FAILED, text, text, traceback, failed=True, result=execution.result)


def _once_more(execution: Execution, again: Again, value: Any, traceback: str) -> Outcome:
    """Return the outcome of a job that sent itself again: a retry, or a replacement."""
    when = instant_or_seconds(again.eta)
    delay = timedelta(seconds=max(again.countdown or 0, 0))
    if isinstance(value, Ignore):  # `replace` ends with it
        call, failed, text = (again.task, again.args, again.kwargs), False, None
    else:
        cause = getattr(value, "exc", None) or value
        call, failed = (again.task, again.args, again.kwargs), True
        text = text_of(cause) if cause is not None else "asked for a retry"
    return Outcome(
        State.SCHEDULED,
        text or f"replaced by {again.task}",
        text,
        traceback,
        failed=failed,
        lower=failed,
        run_at=when if isinstance(when, datetime) else None,
        delay=delay,
        call=call,
        result=execution.result,
    )


def _same_again(execution: Execution, claimed: Claimed, delay: float) -> Again:
    return Again(execution.job.name, claimed.args, claimed.kwargs, delay, None, {})


def _rejected(reject: Any) -> Outcome:
    text = f"rejected by the job: {reject.reason or ''}".rstrip(": ")
    if reject.requeue:
        return Outcome(State.SCHEDULED, text, delay=timedelta(seconds=1))
    return Outcome(State.FAILED, text, text, failed=True)


def refused(job: "Job", problem: str) -> Outcome:
    backend: Any = job.backend
    result = backend.prepare_error(states.FAILURE, TypeError(problem), job.name)
    return Outcome(State.FAILED, problem, problem, failed=True, result=result)


def died(execution: Execution, claimed: Claimed, error: BaseException) -> Outcome:
    if terminate_handler_fired():  # the worker ends: a hand-back, no failure of the job's
        why = "its worker was told to end at once"
        return handed_back(execution.job.name, claimed.max_attempts, why)
    return failed_attempt(
        execution.job.name, claimed.max_attempts, claimed.failures, error, delay=backoff(1)
    )


def backoff(failures: int) -> timedelta:
    """Return the wait before the attempt after `failures` failed ones.

    Exponential from settings.RETRY_BACKOFF to an hour, with jitter over the upper half of each
    step.
    """
    step = min(settings.RETRY_BACKOFF * 2 ** min(failures - 1, 20), BACKOFF_CAP)
    return timedelta(seconds=step.total_seconds() * random.uniform(0.5, 1.0))  # noqa: S311


def enter(job: "Job") -> Execution | None:
    """Return this thread's execution if the job's body begins now; None for a plain call of it."""
    running = current()
    if running is None or running.entered or running.job.name != job.name:
        return None
    running.entered = True
    return running


def call_body(job: "Job", running: Execution, args: Any, kwargs: Any) -> Any:
    """Run the job's body; a tracked run that fails and may be tried again asks to be.

    This is the default for jobs that say nothing of retries: those with Celery's `autoretry_for`,
    and those whose own `retry()` gave up, have decided by themselves.
    """
    running.in_body = True
    try:
        return job.run(*args, **kwargs)
    except (Retry, Ignore, Reject, PermanentError):
        raise
    except Exception as error:
        if not _retries_by_default(job, running, error):
            raise
        countdown = backoff(job.request.retries + 1).total_seconds()
        raise job.retry(
            exc=error, countdown=countdown, max_retries=sys.maxsize, throw=False
        ) from error
    finally:
        running.in_body = False


def _retries_by_default(job: "Job", running: Execution, error: Exception) -> bool:
    if retries_by_itself(job) or running.exhausted:
        return False
    if isinstance(error, tuple(getattr(job, "dont_autoretry_for", None) or ())):
        return False
    return running.tracked and running.attempts_left
