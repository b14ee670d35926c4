"""How a worker runs a job: claim, call Celery's tracer, look at what came back, finish.

`traced` wraps the tracer, the function that Celery builds for each task, because everything that
Celery does for an execution (signals, STARTED, hooks) happens inside it: a hint that may not start
must never reach it. Between claim and finish the run belongs to this process, for as long as the
worker's parent renews its lease.
"""

import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from uuid import UUID

from billiard.common import terminate_handler_fired  # type: ignore[attr-defined]
from celery import states
from celery.app.trace import trace_ok_t
from celery.exceptions import Ignore, Reject, Retry
from celery.utils.saferepr import saferepr
from django.conf import settings
from django.db import DatabaseError, InterfaceError, OperationalError, connection
from kombu.utils.json import loads

from scheduling.errors import EnqueueError
from scheduling.finishing import Outcome, failed_attempt, finish
from scheduling.logs import event
from scheduling.models import State
from scheduling.registry import (
    attempts_allowed,
    check_arguments,
    decode_error,
    encode,
    follow_ups_in,
    refuse_follow_ups,
    retries_by_itself,
)

if TYPE_CHECKING:
    from scheduling.jobs import Job
    from scheduling.results import StoredResult

logger = logging.getLogger(__name__)

Tracer = Callable[..., Any]
T = TypeVar("T")

BACKOFF_CAP = timedelta(hours=1)

# The header of a hint that names the attempt it may start; its presence makes a message a hint.
ATTEMPT = "run_attempt"
NO_RUN = UUID(int=0)
UNGUARDED = nullcontext()
NOTHING_DONE = trace_ok_t(None, None, 0.0, None)

# Who this process is in the ledger; the worker's parent sets it before it forks.
worker_name = f"{os.uname().nodename}:{os.getpid()}"


class PermanentError(Exception):
    """Raised by a job: the run ends as failed with this message, without another attempt."""


class CurrentRun(NamedTuple):
    """What a job may know of the run it is."""

    id: UUID
    schedule: str | None
    due_at: datetime
    attempt: int


class Claimed(NamedTuple):
    """The columns that a claim returns."""

    args: str
    kwargs: str
    options: str
    schedule_name: str
    due_at: datetime
    failures: int
    max_attempts: int | None


@dataclass
class Again:
    """What a job asked for by sending itself again: `retry`, or `replace` where `task` differs."""

    task: str
    args: str
    kwargs: str
    countdown: float | None
    eta: datetime | str | None
    options: Mapping[str, Any]


@dataclass
class Execution:
    """One execution in this thread; `tracked` where a row stands behind it."""

    id: UUID | str  # a plain message's id is any text
    job: "Job"
    attempt: int = 0
    claimed: Claimed | None = None
    result: "StoredResult | None" = None
    again: Again | None = None
    entered: bool = False  # the job's body has begun: a call of the job from here is a plain call
    exhausted: bool = False  # `retry()` said that no more retries are allowed

    @property
    def tracked(self) -> bool:
        return self.claimed is not None

    @property
    def attempts_left(self) -> bool:
        """Whether another attempt is allowed after this one has failed."""
        if self.claimed is None:
            return False
        allowed = attempts_allowed(self.job.name, self.claimed.max_attempts)
        return allowed is None or self.claimed.failures + 1 < allowed

    def can_become_a_run(self, options: Mapping[str, Any]) -> bool:
        """Whether this execution's next try can be a row.

        Not that of a plain message whose id is no UUID, or that is a part of a chain, group or
        chord: it stays Celery's, as it was sent.
        """
        return self.tracked or (is_uuid(self.id) and not follow_ups_in(options))

    def ask_again(
        self,
        task: str,
        args: Any,
        kwargs: Any,
        countdown: float | None,
        eta: datetime | str | None,
        options: Mapping[str, Any],
    ) -> None:
        """Remember that this task sent itself again; `finish` makes it the next attempt."""
        if self.tracked:
            refuse_follow_ups(task, options)
        self.again = Again(
            task, encode(list(args or ())), encode(dict(kwargs or {})), countdown, eta, options
        )


_local = threading.local()


def current() -> Execution | None:
    """Return the execution that this thread is in, if any."""
    return getattr(_local, "execution", None)


def current_run() -> CurrentRun | None:
    """Return the run that the calling job is, or None for a plain Celery message."""
    running = current()
    if running is None or running.claimed is None:
        return None
    claimed, run_id = running.claimed, UUID(str(running.id))
    return CurrentRun(run_id, claimed.schedule_name or None, claimed.due_at, running.attempt)


def traced(job: "Job", tracer: Tracer) -> Tracer:
    """Return Celery's tracer of `job`, wrapped so that a hint runs only if its run is claimed."""

    def trace(task_id: str, args: Any, kwargs: Any, request: dict[str, Any] | None = None) -> Any:
        request = {} if request is None else request
        if ATTEMPT in request:
            return _run_tracked(job, tracer, task_id, request)
        return _run_untracked(job, tracer, task_id, args, kwargs, request)

    return trace


def _run_tracked(job: "Job", tracer: Tracer, task_id: str, request: dict[str, Any]) -> Any:
    run_id, attempt = _parse_hint(task_id, request[ATTEMPT])
    claimed = patiently(lambda: claim(run_id, attempt, job.name))
    if claimed is None:
        event(logger, "hint_dropped", level=logging.DEBUG, run=task_id, attempt=attempt)
        return NOTHING_DONE
    event(logger, "run_claimed", run=run_id, task=job.name, attempt=attempt)
    execution = Execution(run_id, job, attempt, claimed)
    try:
        args, kwargs = _arguments(job, claimed)
    except EnqueueError as error:
        _conclude(run_id, attempt, _refused(job, str(error)))
        return NOTHING_DONE
    _fill_request(request, claimed, args, kwargs)
    try:
        returned = _call_tracer(execution, tracer, task_id, args, kwargs, request)
    except BaseException as error:
        # SystemExit and its like pass through Celery: the attempt must not wait for its lease.
        _conclude(run_id, attempt, _died(execution, claimed, error))
        raise
    _conclude(run_id, attempt, _outcome(execution, claimed, returned))
    return returned


def _run_untracked(
    job: "Job", tracer: Tracer, task_id: str, args: Any, kwargs: Any, request: dict[str, Any]
) -> Any:
    if not settings.ACCEPT_UNTRACKED:
        event(logger, "untracked_refused", level=logging.WARNING, task=job.name, id=task_id)
        return NOTHING_DONE
    execution = Execution(task_id, job)
    returned = _call_tracer(execution, tracer, task_id, args, kwargs, request)
    if execution.again is not None:
        again = execution.again
        patiently(lambda: _adopt(again))
    return returned


def _adopt(again: Again) -> None:
    """Write the run that goes on with a plain message which asked to be retried."""
    from celery import current_app

    from scheduling.enqueueing import enqueue_message

    args, kwargs, countdown = loads(again.args), loads(again.kwargs), again.countdown or 0
    enqueue_message(current_app, again.task, args, kwargs, countdown, again.eta, again.options)


def _call_tracer(
    execution: Execution, tracer: Tracer, task_id: str, args: Any, kwargs: Any, request: Any
) -> Any:
    outer, _local.execution = current(), execution
    try:
        return tracer(task_id, args, kwargs, request)
    finally:
        _local.execution = outer


# --- Claim ---------------------------------------------------------------------------------------

CLAIM = """
UPDATE scheduling_run SET state = 'running', reason = '', worker = %(worker)s,
    started_at = clock_timestamp(),
    lease_expires_at = clock_timestamp() + %(lease)s::interval
 WHERE id = %(id)s AND attempt = %(attempt)s AND task = %(task)s
   AND state IN ('scheduled', 'queued')
   AND run_at <= clock_timestamp() AND (expires_at IS NULL OR expires_at > clock_timestamp())
 RETURNING args, kwargs, options, schedule_name, due_at, failures, max_attempts
"""


def claim(run_id: UUID, attempt: int, task: str) -> Claimed | None:
    """Take the run for this worker; None where this attempt may not start, or not any more."""
    parameters: dict[str, Any] = {
        "id": run_id,
        "attempt": attempt,
        "task": task,
        "worker": worker_name,
        "lease": settings.RUN_LEASE,
    }
    with connection.cursor() as cursor:
        cursor.execute(CLAIM, parameters)
        row = cursor.fetchone()
    return Claimed(*row) if row else None


def patiently(
    act: Callable[[], T],
    patience: timedelta | None = None,
    guard: AbstractContextManager[object] = UNGUARDED,
) -> T:
    """Return act(), tried again while the database is away: for ever, or for `patience`.

    `guard` is held during each try, and not in the pauses.
    """
    begun, pause = time.monotonic(), 0.1
    while True:
        try:
            with guard:
                return act()
        except (OperationalError, InterfaceError) as error:
            waited = time.monotonic() - begun
            event(logger, "database_away", level=logging.WARNING, waited=round(waited, 1),
                  error=error)  # fmt: skip
            with guard:
                connection.close()
            if patience is not None and waited >= patience.total_seconds():
                raise
            time.sleep(pause)
            pause = min(pause * 2, 2.0)


def is_uuid(task_id: object) -> bool:
    """Return whether a task id can be a run's."""
    try:
        UUID(str(task_id))
    except ValueError:
        return False
    return True


def _parse_hint(task_id: str, attempt: Any) -> tuple[UUID, int]:
    try:
        return UUID(task_id), int(attempt)
    except (TypeError, ValueError, OverflowError):
        return NO_RUN, 0  # anybody can write to Redis


def _arguments(job: "Job", claimed: Claimed) -> tuple[list[Any], dict[str, Any]]:
    if problem := decode_error(claimed.args, claimed.kwargs):
        raise EnqueueError(problem)
    args, kwargs = loads(claimed.args), loads(claimed.kwargs)
    check_arguments(job, args, kwargs)
    return args, kwargs


def _fill_request(
    request: dict[str, Any], claimed: Claimed, args: list[Any], kwargs: dict[str, Any]
) -> None:
    """Make the request of a hint, which carries no arguments, that of the real call."""
    options = loads(claimed.options)
    headers = options.pop("headers", None) or {}
    request.update(
        headers,
        args=args,
        kwargs=kwargs,
        argsrepr=saferepr(args),
        kwargsrepr=saferepr(kwargs),
        retries=claimed.failures,
        headers=headers,
        ignore_result=options.get("ignore_result"),
        shadow=options.get("shadow"),
    )
    if claimed.schedule_name:
        request["periodic_task_name"] = claimed.schedule_name


# --- What became of it ---------------------------------------------------------------------------


def _outcome(execution: Execution, claimed: Claimed, returned: Any) -> Outcome:
    """Return what Celery's tracer says became of the attempt."""
    state = returned.info.state if returned.info else states.SUCCESS
    value = returned.info.retval if returned.info else None
    traceback = str(getattr(returned.retval, "traceback", "") or "")
    if execution.again is not None:
        return _once_more(execution, execution.again, value, traceback)
    if state == states.SUCCESS:
        return Outcome(State.SUCCEEDED, result=execution.result)
    if isinstance(value, Reject):
        return _rejected(value)
    if isinstance(value, Ignore):
        return Outcome(State.SUCCEEDED, reason="the job ended with Ignore: no result")
    if isinstance(value, Retry):
        delay = execution.job.default_retry_delay
        return _once_more(execution, _same_again(execution, claimed, delay), value, traceback)
    text = f"{type(value).__name__}: {value}"
    return Outcome(State.FAILED, text, text, traceback, failed=True, result=execution.result)


def _once_more(execution: Execution, again: Again, value: Any, traceback: str) -> Outcome:
    """Return the outcome of a job that sent itself again: a retry, or a replacement."""
    from scheduling.enqueueing import instant_or_seconds

    when = instant_or_seconds(again.eta)
    delay = timedelta(seconds=max(again.countdown or 0, 0))
    if isinstance(value, Ignore):  # `replace` ends with it
        call, failed, text = (again.task, again.args, again.kwargs), False, None
    else:
        cause = getattr(value, "exc", None) or value
        call, failed = (again.task, again.args, again.kwargs), True
        text = f"{type(cause).__name__}: {cause}" if cause is not None else "asked for a retry"
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


def _refused(job: "Job", problem: str) -> Outcome:
    backend: Any = job.backend
    result = backend.prepare_error(states.FAILURE, TypeError(problem), job.name)
    return Outcome(State.FAILED, problem, problem, failed=True, result=result)


def _died(execution: Execution, claimed: Claimed, error: BaseException) -> Outcome:
    if terminate_handler_fired():  # the worker ends: a hand-back, no failure of the job's
        return Outcome(State.SCHEDULED, "handed back: its worker was told to end")
    return failed_attempt(
        execution.job.name, claimed.max_attempts, claimed.failures, error, delay=backoff(1)
    )


def _conclude(run_id: UUID, attempt: int, outcome: Outcome) -> None:
    """Write the outcome, for as long as the lease may still be ours; never raises."""
    if connection.connection is not None:
        connection.close_if_unusable_or_obsolete()
    try:
        patiently(lambda: finish(run_id, attempt, outcome), settings.RUN_LEASE)
    except (OperationalError, InterfaceError):
        event(logger, "outcome_not_written", level=logging.ERROR, run=run_id, attempt=attempt)
    except DatabaseError as error:
        event(logger, "outcome_refused", level=logging.ERROR, run=run_id, error=error)
        text = f"its outcome could not be stored: {error}"
        with suppress(DatabaseError):  # then the lease runs out
            patiently(
                lambda: finish(run_id, attempt, Outcome(State.FAILED, text, text, failed=True)),
                settings.RUN_LEASE,
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


def _retries_by_default(job: "Job", running: Execution, error: Exception) -> bool:
    if retries_by_itself(job) or running.exhausted:
        return False
    if isinstance(error, tuple(getattr(job, "dont_autoretry_for", None) or ())):
        return False
    return running.tracked and running.attempts_left


# --- What the worker's parent process learns -----------------------------------------------------

# Set in the parent of a worker. Takes a hint's task id, its attempt (None: not a hint), Celery's
# status, the encoded error and its traceback; returns whether it took charge of them.
Reporter = Callable[[str, int | None, str, Any, str | None], bool]
reporter: Reporter | None = None


def report(task_id: str, request: Any, status: str, error: Any, traceback: str | None) -> bool:
    """Pass on what Celery stores for a run from outside its execution; False if it is no run's."""
    attempt = getattr(request, ATTEMPT, None)
    if reporter is None:
        return attempt is not None
    return reporter(task_id, attempt, status, error, traceback)
