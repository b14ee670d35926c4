"""Runs the body of a job, and decides whether the attempt is retried."""

import logging
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import wraps
from typing import Any

from billiard.common import terminate_handler_fired  # type: ignore[attr-defined]
from celery import states
from celery.exceptions import Ignore, Reject, Retry
from django.conf import settings
from kombu.utils.json import loads

from scheduling.base_job import BaseJob
from scheduling.errors import PermanentError, RunCancelled, SchedulingError
from scheduling.models import State
from scheduling.registry import retries_by_itself
from scheduling.runs.follow_ups import PARKED
from scheduling.runs.outcomes import NextCall, Outcome, failed, failed_attempt, handed_back, text_of
from scheduling.runs.running import Claimed, Execution, current
from scheduling.worker_process import process_of

logger = logging.getLogger(__name__)

BACKOFF_CAP = timedelta(hours=1)
# Seconds. At a hard time limit a child gets SIGTERM, and SIGKILL 0.1 s later; its parent reports
# the end. A child that is still alive after TERM_TO_KILL was terminated for another reason.
TERM_TO_KILL = 1.0


def outcome_of(execution: Execution, claimed: Claimed, returned: Any) -> Outcome:
    """Return the outcome of an attempt from the answer of Celery's tracer."""
    state = returned.info.state if returned.info else states.SUCCESS
    value = returned.info.retval if returned.info else None
    traceback = str(getattr(returned.retval, "traceback", "") or "")
    if execution.replacement:
        return _replaced(execution)
    if execution.again is not None:
        return _once_more(execution, execution.again, value, traceback)
    if state == states.SUCCESS:
        return Outcome(
            State.SUCCEEDED,
            result=execution.result,
            value=returned.retval,
            added=execution.added,
        )
    if isinstance(value, RunCancelled):
        return Outcome(State.SCHEDULED, "handed back: interrupted")  # `finish` reads who asked
    if isinstance(value, Reject):
        return _rejected(execution.job, value)
    if isinstance(value, Ignore):
        return _ignored(execution, value)
    if isinstance(value, Retry):
        delay = timedelta(seconds=max(execution.job.default_retry_delay, 0))
        return _once_more(execution, NextCall(execution.job.name, delay=delay), value, traceback)
    text = text_of(value)
    return Outcome(
        State.FAILED, text, text, traceback, failed=True, result=execution.result, value=value
    )


def _ignored(execution: Execution, value: Ignore) -> Outcome:
    """Return the outcome of a job that ended with Ignore: it may have set its own state."""
    if execution.result is None or execution.result.status != states.FAILURE:
        reason = "the job ended with Ignore: no result"
        return Outcome(State.SUCCEEDED, reason, result=execution.result, value=value)
    text = "the job said that it had failed, and ended with Ignore"
    return Outcome(State.FAILED, text, text, failed=True, result=execution.result, value=value)


def _replaced(execution: Execution) -> Outcome:
    """Return the outcome of a job that replaced itself.

    `finish` writes the replacement, whose last part has this run's id.
    """
    name = loads(execution.replacement)["task"]
    return Outcome(
        State.SCHEDULED,
        f"replaced by {name}",
        call=NextCall(follow_ups="", run_at=PARKED),
        result=execution.result,
        replacement=execution.replacement,
        added=execution.added,
    )


def _once_more(execution: Execution, again: NextCall, value: Any, traceback: str) -> Outcome:
    """Return the outcome of a job that sent itself again."""
    has_failed, text = not isinstance(value, Ignore), None
    if has_failed:
        cause = getattr(value, "exc", None) or value
        text = text_of(cause) if cause is not None else "asked for a retry"
    return Outcome(
        State.SCHEDULED,
        text or f"goes on as {again.task}",
        text,
        traceback,
        failed=has_failed,
        call=again,
        result=execution.result,
    )


def _rejected(job: BaseJob, reject: Any) -> Outcome:
    text = f"rejected by the job: {reject.reason or ''}".rstrip(": ")
    if reject.requeue:
        return Outcome(State.SCHEDULED, text, call=NextCall(delay=timedelta(seconds=1)))
    return replace(failed(text, reject, job.name), place="(rejected by the job)")


def refused(job: BaseJob, problem: str) -> Outcome:
    return replace(failed(problem, TypeError(problem), job.name), place="(arguments)")


def not_stored(why: str) -> Outcome:
    """Return the outcome of an attempt whose own outcome was refused, without any part of it."""
    text = f"its outcome could not be stored: {why}"
    return replace(failed(text, SchedulingError(text)), place="(result)")


def died(execution: Execution, claimed: Claimed, error: BaseException) -> Outcome | None:
    """Return the outcome of an attempt whose error has passed through Celery's tracer.

    Returns None if its child was terminated although the worker goes on: the parent knows why.
    """
    if terminate_handler_fired():
        time.sleep(TERM_TO_KILL)
        if not process_of(execution.job.app).ends:
            return None
        # A hand-back: the job has not failed.
        why = "its worker had to stop at once"
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


def enter(job: BaseJob) -> Execution | None:
    """Return this thread's execution if the job's body begins now; None for a plain call of it."""
    running = current()
    if running is None or running.entered or running.job.name != job.name:
        return None
    running.entered = True
    return running


def call_body(
    job: BaseJob, running: Execution, args: Any, kwargs: Any, body: Callable[..., Any]
) -> Any:
    """Run the job's `body`; a tracked run that fails asks for a retry if it has attempts left.

    This is the default for jobs that do not decide about retries. Jobs with Celery's
    `autoretry_for`, and jobs whose own `retry()` gave up, have decided.
    """
    with running.body(job.request):
        try:
            return body(*args, **kwargs)
        except (Retry, Ignore, Reject, PermanentError):
            raise
        except Exception as error:
            if not _retries_by_default(job, running, error):
                raise
            countdown = backoff(job.request.retries + 1).total_seconds()
            raise job.retry(
                exc=error, countdown=countdown, max_retries=sys.maxsize, throw=False
            ) from error


def shielded(job: BaseJob, handler: Callable[..., None]) -> Callable[..., None]:
    """Return a handler of the job, wrapped so that its errors do not change the attempt's end.

    Celery does so for `on_success` and `after_return`. It would treat an error of another handler
    as the job's own error, after it had stored the job's, and would forget a retry.
    """

    @wraps(handler)
    def handle(*args: Any, **kwargs: Any) -> None:
        try:
            handler(*args, **kwargs)
        except Exception:
            if job.request.is_eager:
                raise
            logger.exception("handler_failed")

    return handle


def _retries_by_default(job: BaseJob, running: Execution, error: Exception) -> bool:
    if retries_by_itself(job) or running.exhausted:
        return False
    if isinstance(error, tuple(getattr(job, "dont_autoretry_for", None) or ())):
        return False
    return running.tracked and running.attempts_left
