"""A worker's child claims a run, calls Celery's tracer, and finishes the run.

`traced` wraps the tracer, the function that Celery builds for each task, because everything that
Celery does for an execution (signals, STARTED, hooks) happens inside it: a hint whose run must not
start never reaches it. Between claim and finish the run belongs to this process, for as long as the
worker's parent renews its lease.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import UUID

from billiard.process import current_process
from celery.app.trace import trace_ok_t
from celery.exceptions import WorkerShutdown, WorkerTerminate
from django.conf import settings
from django.db import DatabaseError, connection

from scheduling.base_job import BaseJob
from scheduling.broker.signing import ATTEMPT
from scheduling.errors import EnqueueError
from scheduling.execution.attempts import died, not_stored, outcome_of, refused
from scheduling.execution.claiming import claim_on_a_clean_connection
from scheduling.execution.finishing import finish
from scheduling.execution.requests import call_of, fill_request
from scheduling.logs import event
from scheduling.models import State
from scheduling.postgres.connections import drop_unclean
from scheduling.postgres.patience import patiently
from scheduling.postgres.sql import is_away
from scheduling.runs.messages import enqueue_message
from scheduling.runs.outcomes import Outcome, text_of
from scheduling.runs.running import Execution, entered, run_id_of
from scheduling.worker_process import process_of

logger = logging.getLogger(__name__)

Tracer = Callable[..., Any]

NO_RUN = UUID(int=0)
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
            # Celery's pool of processes reports a child that dies. Other pools live on: Celery
            # would count the message as running for ever, and the error would end a solo worker.
            if current_process().daemon:
                raise
            logger.exception("message_failed")
            return NOTHING_DONE

    return trace


def _run_tracked(job: BaseJob, tracer: Tracer, task_id: str, request: dict[str, Any]) -> Any:
    run_id, attempt = _parse_hint(task_id, request[ATTEMPT])
    asked = str(request.get("task"))
    name = asked if asked in job.aliases else job.name  # the row has the name that it was made with
    worker = process_of(job.app).name
    claimed = claim_on_a_clean_connection(run_id, attempt, name, worker)
    if claimed is None:
        event(logger, "hint_dropped", level=logging.DEBUG, run=task_id, attempt=attempt)
        return NOTHING_DONE
    event(logger, "run_claimed", run=run_id, task=job.name, attempt=attempt)
    execution = Execution(run_id, job, attempt, claimed)
    try:
        args, kwargs, options = call_of(execution, claimed)
    except EnqueueError as error:
        _conclude(run_id, attempt, refused(job, str(error)))
        return NOTHING_DONE
    fill_request(request, attempt, claimed, args, kwargs, options)
    try:
        returned = _call_tracer(execution, tracer, task_id, args, kwargs, request)
        outcome = outcome_of(execution, claimed, returned)
    except BaseException as error:
        # Celery does not catch SystemExit or KeyboardInterrupt. The attempt must end before its
        # lease runs out.
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
    if execution.plain_again is not None:  # it asked to be retried: a run goes on with it
        patiently(partial(enqueue_message, execution.plain_again))
    return returned


def _call_tracer(
    execution: Execution, tracer: Tracer, task_id: str, args: Any, kwargs: Any, request: Any
) -> Any:
    with entered(execution):
        return tracer(task_id, args, kwargs, request)


def _parse_hint(task_id: str, attempt: Any) -> tuple[UUID, int]:
    try:
        return run_id_of(task_id) or NO_RUN, int(attempt)
    except (TypeError, ValueError, OverflowError):
        return NO_RUN, 0  # every client of Redis can write a hint


def _conclude(run_id: UUID, attempt: int, outcome: Outcome, error: object = None) -> None:
    """Write the outcome, trying for as long as the lease may last; never raises."""
    drop_unclean(error)
    refused = ""
    for wanted in (outcome, outcome, None):
        last = wanted or not_stored(refused)
        try:
            patiently(partial(finish, run_id, attempt, last), settings.RUN_LEASE)
        except Exception as error:  # of a connection that the job has broken, or of a follow-up
            if is_away(error):  # then the lease runs out
                event(logger, "outcome_not_written", level=logging.ERROR, run=run_id,
                      attempt=attempt)  # fmt: skip
                return
            event(logger, "outcome_refused", level=logging.ERROR, run=run_id, error=error)
            refused = text_of(error) if not isinstance(error, DatabaseError) else str(error)
            connection.close()
            continue
        return
