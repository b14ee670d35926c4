"""A worker's child claims a run, calls Celery's tracer, and finishes the run.

`traced` wraps the tracer, the function that Celery builds for each task, because everything that
Celery does for an execution (signals, STARTED, hooks) happens inside it: a hint that may not start
must never reach it. Between claim and finish the run belongs to this process, for as long as the
worker's parent renews its lease.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from billiard.process import current_process
from celery.app.trace import trace_ok_t
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.utils.saferepr import saferepr
from django.conf import settings
from django.db import DatabaseError, Error, connection
from kombu.utils.json import loads

from scheduling.base_job import BaseJob
from scheduling.broker.signing import ATTEMPT
from scheduling.errors import EnqueueError
from scheduling.execution.attempts import died, not_stored, outcome_of, refused
from scheduling.execution.finishing import finish
from scheduling.ids import claim_id as new_claim_id
from scheduling.logs import event
from scheduling.models import State
from scheduling.postgres.connections import drop_unclean
from scheduling.postgres.infinity import saturated
from scheduling.postgres.prepared import run_alone
from scheduling.postgres.silence import waits
from scheduling.postgres.sql import is_away, is_conflict
from scheduling.registry import check_arguments, decode_call
from scheduling.runs.enqueueing import enqueue_message
from scheduling.runs.errbacks import errback_arguments
from scheduling.runs.follow_ups import request_fields
from scheduling.runs.options import DELAYED, read_options
from scheduling.runs.outcomes import Outcome, text_of
from scheduling.runs.running import Again, Claimed, Execution, entered, run_id_of
from scheduling.task_options import CeleryCall
from scheduling.worker_process import WorkerProcess, process_of

logger = logging.getLogger(__name__)

Tracer = Callable[..., Any]
T = TypeVar("T")

NO_RUN = UUID(int=0)
PLAIN = {str, int, float, bool, type(None)}
NOTHING_DONE = trace_ok_t(None, None, 0.0, None)


def traced(job: BaseJob, tracer: Tracer) -> Tracer:
    """Return Celery's tracer of `job`, wrapped so that a hint runs only if its run is claimed."""

    def trace(task_id: str, args: Any, kwargs: Any, request: dict[str, Any] | None = None) -> Any:
        request = {} if request is None else request
        try:
            if ATTEMPT in request:
                return _run_tracked(job, tracer, task_id, request)
            return _run_untracked(job, tracer, task_id, args, kwargs, request)
        except (WorkerShutdown, WorkerTerminate):
            raise
        except BaseException:
            # Of a child, Celery is told so. Other pools live on: there Celery would take the
            # message for one at work for ever, and an error would end a worker without children.
            if current_process().daemon:
                raise
            logger.exception("message_failed")
            return NOTHING_DONE

    return trace


def _run_tracked(job: BaseJob, tracer: Tracer, task_id: str, request: dict[str, Any]) -> Any:
    run_id, attempt = _parse_hint(task_id, request[ATTEMPT])
    asked = str(request.get("task"))
    name = asked if asked in job.aliases else job.name  # the row has the name it was made with
    worker = process_of(job.app).name
    claimed = _claim_on_a_clean_connection(run_id, attempt, name, worker)
    if claimed is None:
        event(logger, "hint_dropped", level=logging.DEBUG, run=task_id, attempt=attempt)
        return NOTHING_DONE
    event(logger, "run_claimed", run=run_id, task=job.name, attempt=attempt)
    execution = Execution(run_id, job, attempt, claimed)
    try:
        args, kwargs, options = _call_of(execution, claimed)
    except EnqueueError as error:
        _conclude(run_id, attempt, refused(job, str(error)))
        return NOTHING_DONE
    _fill_request(request, attempt, claimed, args, kwargs, options)
    try:
        returned = _call_tracer(execution, tracer, task_id, args, kwargs, request)
        outcome = outcome_of(execution, claimed, returned)
    except BaseException as error:
        # SystemExit and its like pass through Celery: the attempt must not wait for its lease.
        if (last := died(execution, claimed, error)) is not None:
            _conclude(run_id, attempt, last, error)
        if not isinstance(error, Exception):
            raise
        logger.exception("outcome_unknown")
        return NOTHING_DONE
    if claimed.follow_ups and outcome.state != State.SCHEDULED:
        outcome = replace(outcome, followed=True)
    _conclude(run_id, attempt, outcome, returned.info and returned.info.retval)
    return returned


def _run_untracked(
    job: BaseJob, tracer: Tracer, task_id: str, args: Any, kwargs: Any, request: dict[str, Any]
) -> Any:
    execution = Execution(task_id, job)
    drop_unclean(tried_again=False)
    returned = _call_tracer(execution, tracer, task_id, args, kwargs, request)
    if execution.again is not None:
        again = execution.again
        patiently(lambda: _adopt(again))
    return returned


def _adopt(again: Again) -> None:
    """Write the run that goes on with a plain message which asked to be retried."""
    args, kwargs, countdown = loads(again.args), loads(again.kwargs), again.countdown or 0
    enqueue_message(CeleryCall(again.task, args, kwargs, countdown, again.eta, again.options))


def _call_tracer(
    execution: Execution, tracer: Tracer, task_id: str, args: Any, kwargs: Any, request: Any
) -> Any:
    with entered(execution):
        return tracer(task_id, args, kwargs, request)


# --- Claim ---------------------------------------------------------------------------------------

CLAIM = f"""
UPDATE scheduling_run SET state = 'running', reason = '', worker = %(worker)s,
    started_at = clock_timestamp(),
    lease_expires_at = clock_timestamp() + %(lease)s::interval, claim_id = %(claim_id)s,
    late_by = CASE WHEN attempt > 1 THEN late_by  -- only the first start can meet the deadline
        WHEN deadline < clock_timestamp() THEN clock_timestamp() - deadline END
 WHERE id = %(id)s AND attempt = %(attempt)s AND task = %(task)s
   AND (state IN ('scheduled', 'queued') AND run_at <= clock_timestamp()
        AND (expires_at IS NULL OR expires_at > clock_timestamp())
        OR state = 'running' AND claim_id = %(claim_id)s)
 RETURNING args, kwargs, options, schedule_name, {saturated("due_at")}, failures, max_attempts,
    follow_ups, COALESCE(given_priority, priority)
"""  # noqa: S608 (constants only)


def claimant() -> int:
    """Return the number under which this thread claims: the parent knows its child by it.

    A child's process id; in a pool of threads, or one without children, the thread's own id.
    """
    number = os.getpid() if current_process().daemon else threading.get_native_id()
    return number & 0xFFFF_FFFF


def _claim_on_a_clean_connection(
    run_id: UUID, attempt: int, task: str, worker: str
) -> Claimed | None:
    """Claim; a connection that an earlier job spoilt is replaced, once."""
    drop_unclean()
    claim_id = new_claim_id(claimant())
    for last in (False, True):
        try:
            return patiently(lambda: claim(run_id, attempt, task, claim_id, worker=worker))
        except DatabaseError as error:
            connection.close()
            if last:  # the hint is sent again
                event(logger, "claim_refused", level=logging.ERROR, run=run_id, error=error)
    return None


def claim(
    run_id: UUID,
    attempt: int,
    task: str,
    claim_id: UUID | None = None,
    *,
    worker: str = WorkerProcess.name,
) -> Claimed | None:
    """Take the run for a worker; None where this attempt may not start, or not any more.

    Whoever repeats a claim whose answer was lost, with the same `claim_id`, gets the run again.
    """
    parameters: dict[str, Any] = {
        "id": run_id,
        "attempt": attempt,
        "task": task,
        "worker": worker,
        "lease": settings.RUN_LEASE,
        "claim_id": claim_id or new_claim_id(claimant()),
    }
    rows = run_alone(CLAIM, parameters)
    return Claimed(*rows[0]) if rows else None


def patiently(
    act: Callable[[], T],
    patience: timedelta | None = None,
    guard: AbstractContextManager[object] = waits,
) -> T:
    """Return act(), tried again while the database is away: for ever, or for `patience`.

    The patience begins with the first error: an act may take longer than that. `guard` is held
    during each try, and not in the pauses.
    """
    begun, pause = 0.0, 0.1
    while True:
        try:
            with guard:
                return act()
        except Error as error:
            if not is_away(error):
                raise
            begun = begun or time.monotonic()
            waited = time.monotonic() - begun
            name = "conflict_retried" if is_conflict(error) else "database_away"
            event(logger, name, level=logging.WARNING, waited=round(waited, 1), error=error)
            with guard:
                connection.close()
            if patience is not None and waited >= patience.total_seconds():
                raise
            time.sleep(pause)
            pause = min(pause * 2, 2.0)


def _parse_hint(task_id: str, attempt: Any) -> tuple[UUID, int]:
    try:
        return run_id_of(task_id) or NO_RUN, int(attempt)
    except (TypeError, ValueError, OverflowError):
        return NO_RUN, 0  # anybody can write to Redis


def _call_of(
    execution: Execution, claimed: Claimed
) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """Return the arguments and the options that the row holds."""
    args, kwargs = decode_call(claimed.args, claimed.kwargs)
    options = read_options(claimed.options)
    if failure := options.get("failure"):
        args = errback_arguments(execution.job, failure, args, kwargs)
        execution.arguments = args, kwargs
    check_arguments(execution.job, args, kwargs)
    return args, kwargs, options


def _fill_request(
    request: dict[str, Any],
    attempt: int,
    claimed: Claimed,
    args: list[Any],
    kwargs: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Make the request of a hint, which carries no arguments, that of the real call."""
    headers = options.pop("headers", None)
    headers = headers if isinstance(headers, dict) else {}
    request.update({name: value for name, value in headers.items() if name not in request})
    request.update(request_fields(options))
    if DELAYED in options:
        request[DELAYED] = claimed.due_at.isoformat()
    request["delivery_info"] = {
        **(request.get("delivery_info") or {}),
        "priority": options.get("priority", claimed.priority),
        # An attempt before this one was given back, or rejected to be tried again.
        "redelivered": attempt > claimed.failures + 1,
    }
    request.update(
        args=args,
        kwargs=kwargs,
        argsrepr=_shown(args, args),
        kwargsrepr=_shown(kwargs, kwargs.values()),
        retries=claimed.failures,
        headers=headers,
        ignore_result=options.get("ignore_result"),
        shadow=options.get("shadow"),
    )
    if claimed.schedule_name:
        request["periodic_task_name"] = claimed.schedule_name


def _shown(call: list[Any] | dict[str, Any], values: Iterable[Any]) -> str:
    """Return `saferepr` of arguments, which for plain ones takes ten times as long as `repr`."""
    return repr(call) if all(type(value) in PLAIN for value in values) else saferepr(call)


def _conclude(run_id: UUID, attempt: int, outcome: Outcome, error: object = None) -> None:
    """Write the outcome, for as long as the lease may still be ours; never raises."""
    drop_unclean(error)
    refused = ""
    for wanted in (outcome, outcome, None):
        last = wanted or not_stored(refused)
        try:
            patiently(partial(finish, run_id, attempt, last), settings.RUN_LEASE)
        except Exception as error:  # perhaps of a connection that the job spoilt, or a follow-up
            if is_away(error):  # then the lease runs out
                event(logger, "outcome_not_written", level=logging.ERROR, run=run_id,
                      attempt=attempt)  # fmt: skip
                return
            event(logger, "outcome_refused", level=logging.ERROR, run=run_id, error=error)
            refused = text_of(error) if not isinstance(error, DatabaseError) else str(error)
            connection.close()
            continue
        return
