"""`finish`: every end of an attempt goes through it.

One statement moves the run, writes its TaskResult and releases the run that was held for it. The
end of a run with follow-ups is a transaction, which writes them too. `attempt` is the fence: a
worker that lost its lease matches no row any more.
"""

import logging
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any
from uuid import UUID

from celery import states
from celery.exceptions import TaskRevokedError
from django.conf import settings
from django.db import Error, connection, transaction

from scheduling.broker.doorbell import ring_on_commit
from scheduling.failures import streaks
from scheduling.failures.noting import NOTE, described
from scheduling.logs import event
from scheduling.models import Run, State
from scheduling.postgres.prepared import run_alone
from scheduling.postgres.sql import clean, is_away, shortened
from scheduling.runs import follow_ups
from scheduling.runs.follow_ups import FollowUpError, MovedMeanwhileError
from scheduling.runs.options import limit
from scheduling.runs.outcomes import Outcome, backend, cancelled, failed, text_of
from scheduling.runs.stored_results import StoredResult

logger = logging.getLogger(__name__)

TRACEBACK_MAX = 20_000  # characters kept of one attempt's traceback


# A run keeps the errors of its first ten attempts and of its last ninety.
# `CASE state` keeps Postgres from searching the index of all running runs for this one id.
MOVE = """
UPDATE scheduling_run SET
    state = %(state)s, reason = %(reason)s, lease_expires_at = NULL,
    failures = failures + %(failed)s,
    errors = CASE WHEN %(error)s::text IS NULL THEN errors
        ELSE CASE WHEN jsonb_array_length(errors) < 100 THEN errors ELSE errors - 10 END
        || jsonb_build_array(
        jsonb_build_object('attempt', attempt, 'error', %(error)s::text,
            'traceback', %(traceback)s::text, 'worker', worker,
            'started_at', started_at, 'ended_at', clock_timestamp())
        || CASE WHEN %(blow)s::boolean THEN '{"blow": true}'::jsonb ELSE '{}' END) END,
"""
MOVE_TO_FINAL = (
    MOVE
    + """ finished_at = clock_timestamp()
 WHERE id = %(id)s AND attempt = CASE state WHEN 'running' THEN %(attempt)s::int END
   AND (%(followed)s OR follow_ups = '')
   AND (%(lease)s::timestamptz IS NULL OR lease_expires_at = %(lease)s)
 RETURNING id, schedule_id, backfill_id, true AS final
"""
)
MOVE_TO_SCHEDULED = (
    MOVE
    + """ attempt = attempt + 1, worker = '', queued_at = NULL, started_at = NULL,
    run_at = COALESCE(%(run_at)s::timestamptz, clock_timestamp() + %(delay)s::interval),
    priority = COALESCE(%(priority)s,
                        LEAST(priority + 3 * %(failed)s, 9)),
    given_priority = CASE WHEN %(priority)s::smallint IS NULL
                          THEN COALESCE(given_priority, priority) END,
    task = COALESCE(%(task)s, task), args = COALESCE(%(args)s, args),
    kwargs = COALESCE(%(kwargs)s, kwargs), options = COALESCE(%(options)s, options),
    queue = COALESCE(%(queue)s, queue), follow_ups = COALESCE(%(follow_ups)s, follow_ups),
    expires_at = COALESCE(%(expires)s::timestamptz,
                          clock_timestamp() + %(expires_in)s::interval, expires_at)
 WHERE id = %(id)s AND attempt = CASE state WHEN 'running' THEN %(attempt)s::int END
   AND cancel_requested_by = ''
   AND (%(lease)s::timestamptz IS NULL OR lease_expires_at = %(lease)s)
 RETURNING id, schedule_id, backfill_id, false AS final
"""
)

# Releases the oldest run that was held until its schedule's earlier runs were final. Two runs that
# end at the same moment do not see each other's end; `release_held` finds the held run then. The
# `state` condition stands outside as well: Postgres checks it again on the row's newest version,
# which another transaction may just have moved. Beat releases the runs of backfills.
RELEASE = """
UPDATE scheduling_run SET state = 'scheduled' WHERE state = 'held' AND id IN (
    SELECT (SELECT h.id FROM scheduling_run h
             WHERE h.schedule_id = done.schedule_id AND h.state = 'held' AND h.backfill_id IS NULL
             ORDER BY h.due_at, h.id LIMIT 1)
      FROM done WHERE final AND backfill_id IS NULL AND NOT EXISTS (
        SELECT 1 FROM scheduling_run o WHERE o.schedule_id = done.schedule_id
           AND o.backfill_id IS NULL AND o.state IN ('scheduled', 'queued', 'running')
           AND o.id <> done.id))
 RETURNING run_at
"""

# How many runs moved; whether others may start now: a released run, or the next of a backfill; and
# for how many seconds the released run could have started already, which the ring passes to beat.
MOVED = """
SELECT count(*),
    EXISTS (SELECT 1 FROM released)
    OR count(*) FILTER (WHERE final AND backfill_id IS NOT NULL) > 0,
    (SELECT max(extract(epoch FROM clock_timestamp() - GREATEST(run_at, '0001-01-03Z')))::float
       FROM released)
  FROM done
"""

RECORD = """
INSERT INTO django_celery_results_taskresult
    (task_id, date_created, date_done, status, result, traceback, meta, content_type,
     content_encoding, task_name, task_args, task_kwargs, worker, periodic_task_name)
SELECT id::text, clock_timestamp(), clock_timestamp(), %(r_status)s, %(r_result)s, %(r_traceback)s,
     %(r_meta)s, %(r_content_type)s, %(r_content_encoding)s, %(r_task_name)s, %(r_task_args)s,
     %(r_task_kwargs)s, %(r_worker)s, %(r_periodic_task_name)s
  FROM done
ON CONFLICT (task_id) DO UPDATE SET
    (date_done, status, result, traceback, meta, content_type, content_encoding, task_name,
     task_args, task_kwargs, worker, periodic_task_name) =
    (EXCLUDED.date_done, EXCLUDED.status, EXCLUDED.result, EXCLUDED.traceback, EXCLUDED.meta,
     EXCLUDED.content_type, EXCLUDED.content_encoding, EXCLUDED.task_name, EXCLUDED.task_args,
     EXCLUDED.task_kwargs, EXCLUDED.worker, EXCLUDED.periodic_task_name)
"""


def finish(run_id: UUID, attempt: int, outcome: Outcome) -> bool:
    """End attempt `attempt` of a running run as `outcome` says, with its result, at once.

    Returns:
        False if the fence was lost: another attempt owns the run, or the run has ended. Nothing is
        written then. A second call does no harm.
    """
    if outcome.last is not None and _ends_from_outside(run_id) + 1 >= settings.DEFAULT_MAX_ATTEMPTS:
        outcome = replace(outcome.last, lease=outcome.lease)
    if outcome.state == State.CANCELLED and outcome.result is None:
        error = TaskRevokedError(outcome.reason)
        outcome = replace(outcome, result=backend().prepare_error(states.REVOKED, error))
    try:
        moved = (_fail if outcome.state == State.FAILED else _end)(run_id, attempt, outcome)
    except FollowUpError as error:
        return finish(run_id, attempt, _unfollowable(error))
    if moved:
        _log(run_id, attempt, outcome)
        return True
    asked_by, followed = _found(run_id, attempt)
    if asked_by and outcome.state == State.SCHEDULED:
        return finish(run_id, attempt, replace(cancelled(asked_by), **_of_the_attempt(outcome)))
    if followed and not outcome.followed and outcome.state != State.SCHEDULED:
        return finish(run_id, attempt, replace(outcome, followed=True))
    event(logger, "fence_lost", level=logging.WARNING, run=run_id, attempt=attempt,
          wanted=outcome.state.value, reason=outcome.reason)  # fmt: skip
    return False


def _ends_from_outside(run_id: UUID) -> int:
    """Return how many attempts of a run that may retry for ever were ended from outside the job."""
    errors = Run.objects.filter(pk=run_id).values_list("errors", flat=True).first() or ()
    return sum("blow" in error for error in errors)


def _fail(run_id: UUID, attempt: int, outcome: Outcome) -> bool:
    """End the run as failed, and pause its schedule if this was one failure too many."""
    with transaction.atomic():
        moved = _end(run_id, attempt, outcome)
        if moved:
            streaks.pause_if_due(run_id)
    return moved


RUNNING = """
id = %(id)s AND attempt = %(attempt)s AND state = 'running'
   AND (%(lease)s::timestamptz IS NULL OR lease_expires_at = %(lease)s)
"""


def _end(run_id: UUID, attempt: int, outcome: Outcome) -> bool:
    move, parameters = _move(run_id, attempt, outcome)
    if not outcome.followed and not outcome.replacement:
        return apply(move, parameters, outcome.result) > 0
    ended = follow_ups.ending(RUNNING, parameters)
    if ended is None:
        return False
    try:
        with transaction.atomic():
            if outcome.replacement:
                moved = partial(apply, move, parameters, outcome.result)
                follow_ups.replace(ended, outcome, moved)
            else:
                follow_ups.end(ended, outcome, partial(apply, move, parameters))
    except MovedMeanwhileError:
        return False
    return True


def _unfollowable(error: FollowUpError) -> Outcome:
    """Return the outcome of a run that succeeded, and whose follow-ups cannot be written."""
    return replace(failed(text_of(error), error), followed=True)


def _move(run_id: UUID, attempt: int, outcome: Outcome) -> tuple[str, dict[str, Any]]:
    """Return the statement that moves the run, with its parameters."""
    parameters = {
        "id": run_id,
        "attempt": attempt,
        "state": outcome.state,
        "reason": clean(outcome.reason),
        "error": None if outcome.error is None else clean(outcome.error),
        "traceback": clean(shortened(outcome.traceback, TRACEBACK_MAX)),
        "failed": int(outcome.failed),
        "lease": outcome.lease,
        "followed": outcome.followed,
        "blow": outcome.last is not None,
    }
    if outcome.state == State.SCHEDULED:
        call = outcome.call._asdict()
        return MOVE_TO_SCHEDULED, {**parameters, **call, **limit("expires", outcome.call.expires)}
    if outcome.state == State.FAILED:
        text = outcome.error or outcome.reason
        parameters |= described(text, outcome.traceback, outcome.place)
    return MOVE_TO_FINAL, parameters


def _log(run_id: UUID, attempt: int, outcome: Outcome) -> None:
    again = outcome.state == State.SCHEDULED
    name = "run_retried" if again else f"run_{outcome.state}"
    event(logger, name, run=run_id, attempt=attempt, reason=outcome.reason)
    if again:
        ring_on_commit()


def _found(run_id: UUID, attempt: int) -> tuple[str, bool]:
    """Return who asked to cancel this running attempt, or "", and if the run has follow-ups."""
    running = Run.objects.filter(pk=run_id, attempt=attempt, state=State.RUNNING)
    found = running.values_list("cancel_requested_by", "follow_ups").first()
    return (found[0], bool(found[1])) if found else ("", False)


def _of_the_attempt(outcome: Outcome) -> dict[str, Any]:
    return {name: getattr(outcome, name) for name in ("error", "traceback", "failed", "lease")}


def apply(move: str, parameters: dict[str, Any], result: StoredResult | None) -> int:
    """Move rows by `move` (which returns id, schedule_id, final); return how many.

    If `parameters` describe a failure (failures.noting.described), the failure is noted.
    """
    sql = _with_all(move, noted="n_error" in parameters, recorded=result is not None)
    if result is not None:
        parameters = {**parameters, **_columns(result)}
    ((moved, others_may_go, waited),) = run_alone(sql, parameters)
    if others_may_go:
        ring_on_commit(waited or 0.0)
    return int(moved)


@lru_cache
def _with_all(move: str, *, noted: bool, recorded: bool) -> str:
    """Return the statement of a move with the release, the failure note and the result."""
    also = f", noted AS ({NOTE})" if noted else ""
    also += f", recorded AS ({RECORD})" if recorded else ""
    return f"WITH done AS ({move}), released AS ({RELEASE}){also} {MOVED}"


def record(task_id: str, result: StoredResult) -> None:
    """Store a result that comes with no move of a run."""
    sql = f"WITH done (id) AS (SELECT %(id)s::text) {RECORD}"
    with connection.cursor() as cursor:
        cursor.execute(sql, {"id": task_id, **_columns(result)})


AT_WORK = """
SELECT id FROM scheduling_run WHERE id = %(id)s AND attempt = %(attempt)s AND state = 'running'
"""
NEVER_OVER_AN_END = (
    "WHERE django_celery_results_taskresult.status NOT IN ('SUCCESS', 'FAILURE', 'REVOKED')"
)


def record_progress(run_id: UUID, attempt: int, result: StoredResult) -> None:
    """Store the progress that a job reports with `update_state` while it runs.

    Nothing is stored inside a transaction of the job: no other process could read it, and the end
    of the run would wait for that transaction.
    """
    if connection.in_atomic_block:
        return
    sql = f"WITH done AS ({AT_WORK}) {RECORD} {NEVER_OVER_AN_END}"
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql, {"id": run_id, "attempt": attempt, **_columns(result)})
    except Error as error:
        if not is_away(error):
            raise
        event(logger, "progress_not_stored", level=logging.WARNING, run=run_id, error=error)


def _columns(result: StoredResult) -> dict[str, str | None]:
    return {
        f"r_{name}": None if value is None else clean(value) for name, value in vars(result).items()
    }
