"""Moves runs that wait: expires, cancels, releases them, or sends them back to the ledger."""

import logging
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from celery import states
from celery.exceptions import TaskRevokedError
from django.db import connection, transaction
from django.db.models import QuerySet
from django.db.models.functions import Coalesce, Now

from scheduling.errors import RowLockedError, SchedulingError
from scheduling.execution.finishing import apply, record
from scheduling.logs import event
from scheduling.models import FINAL, WAITING_SQL, Run, State
from scheduling.postgres.sql import clean
from scheduling.runs import follow_ups
from scheduling.runs.follow_ups import PARKED
from scheduling.runs.outcomes import Outcome, backend
from scheduling.runs.running import run_id_of
from scheduling.runs.stored_results import StoredResult

logger = logging.getLogger(__name__)

BATCH = 500  # runs that a repair of beat's takes at a time

FIRST_ID, LAST_ID = -(2**31), 2**31 - 1  # of schedules

PATIENCE = 5.0  # seconds for which a cancel waits for a row that somebody holds

CLOSE = """
UPDATE scheduling_run SET state = %(state)s, reason = %(reason)s, finished_at = clock_timestamp()
 WHERE {which}
 RETURNING id, schedule_id, backfill_id, true AS final
"""
# Those that others follow are left to a transaction each: see `_close_followed`.
CLOSE_WAITING = CLOSE.format(
    which="""id = ANY (ARRAY(SELECT id FROM scheduling_run WHERE {where} AND follow_ups = ''
                        LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED))"""
)
CLOSE_ONE = CLOSE.format(which="id = %(id)s")
FOLLOWED = """
SELECT id FROM scheduling_run WHERE {where} AND follow_ups <> '' LIMIT %(limit)s
"""
# A run that has replaced itself had started in time: what its replacement may take is not its own.
EXPIRED = f"""
expires_at <= statement_timestamp() AND expires_at >= COALESCE(%(low)s::timestamptz, '-infinity')
AND state IN ({WAITING_SQL}) AND run_at <> %(parked)s
"""


def expire_waiting(limit: int = BATCH, low: datetime | None = None) -> int:
    """End the waiting runs whose `expires_at` has passed, at `low` or later; return how many.

    Those that wait for another attempt too: there is no use in that either.
    """
    parameters: dict[str, Any] = {"limit": limit, "parked": PARKED, "low": low}
    return sum(
        _close_waiting(
            f"{EXPIRED} AND {which}", State.EXPIRED,
            f"expired: its expiry time passed before {what}", parameters,
        )
        for which, what in (("attempt = 1", "it started"), ("attempt > 1", "its next attempt"))
    )  # fmt: skip


def cancel(run_id: UUID, *, by: str) -> Run:
    """Cancel a run: at once while it waits; a running one is told, and its worker ends it.

    Returns:
        The run as it stands now: cancelled, or running with `cancel_requested_by` set.

    Raises:
        SchedulingError: there is no such run, or it is final already.
        RowLockedError: another transaction has locked its row for PATIENCE seconds.
    """
    where = f"id = %(id)s AND state IN ({WAITING_SQL})"
    until = time.monotonic() + PATIENCE
    while True:
        if _close_waiting(where, State.CANCELLED, f"cancelled by {by}", {"id": run_id, "limit": 1}):
            return Run.objects.get(pk=run_id)
        asked = ask_to_end(Run.objects.filter(pk=run_id), by=by)
        run = Run.objects.filter(pk=run_id).first()
        if run is None:
            raise SchedulingError(f"there is no run {run_id}.")
        if asked:
            return run
        if run.state in FINAL:
            raise SchedulingError(f"run {run_id} is {run.state} already: nothing to cancel.")
        if time.monotonic() > until:
            raise RowLockedError(
                f"run {run_id} is locked by another transaction: cancel it again in a moment."
            )
        time.sleep(0.01)  # beat, a claim, or what only began to run just now


def ask_to_end(runs: QuerySet[Run], *, by: str) -> int:
    """Tell the workers of those of `runs` that run to end them; return how many.

    Rows that somebody holds are left.
    """
    free = runs.filter(state=State.RUNNING).select_for_update(skip_locked=True, no_key=True)
    with transaction.atomic(savepoint=False):
        return Run.objects.filter(pk__in=list(free.values_list("pk", flat=True))).update(
            cancel_requested_by=by[:150], cancel_requested_at=Coalesce("cancel_requested_at", Now())
        )


def cancel_waiting(run_id: UUID, *, by: str, attempt: int | None = None) -> bool:
    """Cancel a run if it waits, at that attempt where one is given; return whether it did."""
    where = f"""
        id = %(id)s AND state IN ({WAITING_SQL}) AND attempt = COALESCE(%(attempt)s::int, attempt)
    """
    parameters = {"id": run_id, "attempt": attempt, "limit": 1}
    return _close_waiting(where, State.CANCELLED, f"cancelled by {by}", parameters) > 0


def cancel_waiting_of(schedule_id: int, *, reason: str) -> int:
    """Cancel what waits of one schedule, but for its backfills; return how many runs."""
    where = f"schedule_id = %(schedule_id)s AND backfill_id IS NULL AND state IN ({WAITING_SQL})"
    parameters = {"schedule_id": schedule_id, "limit": 10_000}
    return _close_waiting(where, State.CANCELLED, reason, parameters)


def cancel_waiting_of_backfill(backfill_id: UUID, *, by: str) -> int:
    """Cancel some of what waits of one backfill; return how many runs, 0 when none is left."""
    where = f"backfill_id = %(backfill_id)s AND state IN ({WAITING_SQL})"
    parameters = {"backfill_id": backfill_id, "limit": 10_000}
    return _close_waiting(where, State.CANCELLED, f"backfill cancelled by {by}", parameters)


def _close_waiting(where: str, state: State, reason: str, parameters: dict[str, Any]) -> int:
    result = backend().prepare_error(states.REVOKED, TaskRevokedError(reason))
    parameters = {**parameters, "state": state, "reason": clean(reason)}
    count = apply(CLOSE_WAITING.format(where=where), parameters, result)
    with connection.cursor() as cursor:
        cursor.execute(FOLLOWED.format(where=where), parameters)
        followed = [run_id for (run_id,) in cursor.fetchall()]
    outcome = Outcome(state, reason, result=result)
    count += sum(_close_followed(run_id, parameters, outcome) for run_id in followed)
    if count:
        event(logger, f"run_{state}", runs=count, reason=reason)
    return count


def _close_followed(run_id: UUID, parameters: dict[str, Any], outcome: Outcome) -> bool:
    """End one waiting run, with what follows, unless somebody holds it or has moved it."""
    parameters = {**parameters, "id": run_id}
    with transaction.atomic():
        ended = follow_ups.ending(
            f"id = %(id)s AND state IN ({WAITING_SQL})",
            parameters,
            lock="FOR NO KEY UPDATE SKIP LOCKED",
        )
        if ended is not None:
            follow_ups.end(ended, outcome, partial(apply, CLOSE_ONE, parameters))
    return ended is not None


CLOSE_PARKED = CLOSE.format(which="id = %(id)s AND state = 'scheduled' AND run_at = %(parked)s")


def settle(task_id: str, result: StoredResult) -> None:
    """Store the result of a follow-up that will never be sent, because what it follows failed.

    Where that is the last part of what a run has replaced itself with, that run ends as well.
    """
    run_id = run_id_of(task_id)
    if run_id is not None and result.status in states.PROPAGATE_STATES:
        parameters = {
            "id": run_id,
            "parked": PARKED,
            "state": State.FAILED if result.status == states.FAILURE else State.CANCELLED,
            "reason": "what replaced it did not succeed",
        }
        apply(CLOSE_PARKED, parameters, None)
    record(task_id, result)


# A loose scan of the index run_held: a few probes for each schedule that has held runs, however
# many it has. After an outage that can be a thousand for each of thousands of schedules.
RELEASE_HELD = """
UPDATE scheduling_run SET state = 'scheduled' WHERE state = 'held' AND id = ANY (ARRAY(
    WITH RECURSIVE holding AS (
        (SELECT schedule_id FROM scheduling_run WHERE state = 'held' AND backfill_id IS NULL
            AND schedule_id >= %(first)s AND schedule_id <= %(last)s
          ORDER BY schedule_id LIMIT 1)
      UNION ALL
        SELECT next.schedule_id FROM holding, LATERAL (
            SELECT schedule_id FROM scheduling_run
             WHERE state = 'held' AND backfill_id IS NULL AND schedule_id > holding.schedule_id
               AND schedule_id <= %(last)s
             ORDER BY schedule_id LIMIT 1) next)
    SELECT (SELECT h.id FROM scheduling_run h WHERE h.schedule_id = holding.schedule_id
               AND h.state = 'held' AND h.backfill_id IS NULL ORDER BY h.due_at, h.id LIMIT 1)
      FROM holding WHERE NOT EXISTS (
        SELECT 1 FROM scheduling_run o WHERE o.schedule_id = holding.schedule_id
           AND o.backfill_id IS NULL AND o.state IN ('scheduled', 'queued', 'running'))
     LIMIT %(limit)s))
RETURNING queue, priority, CASE WHEN run_at <= statement_timestamp()
    THEN GREATEST(run_at, '0001-01-03Z') END
"""


class Released(NamedTuple):
    """A run that waits no more for others; `run_at` is None where its time is still to come."""

    queue: str
    priority: int
    run_at: datetime | None


def release_held(limit: int = BATCH) -> int:
    """Let held runs of up to `limit` schedules go, as `release_held_of` does; return how many."""
    return len(release_held_of(FIRST_ID, LAST_ID, limit))


def release_held_of(first: int, last: int, limit: int = BATCH) -> Sequence[Released]:
    """Let the oldest held run of each schedule go whose others are final; the net of RELEASE.

    Of schedules whose ids are from `first` to `last`.

    Returns:
        The runs, of up to `limit` schedules.
    """
    with connection.cursor() as cursor:
        cursor.execute(RELEASE_HELD, {"limit": limit, "first": first, "last": last})
        return [Released(*row) for row in cursor.fetchall()]


UNKNOWN_FOR = timedelta(seconds=30)  # until a worker is asked again that may know its task

PUT_BACK = """
UPDATE scheduling_run SET state = 'scheduled', queued_at = NULL, reason = %(reason)s,
    run_at = clock_timestamp() + %(wait)s::interval
 WHERE id = %(id)s AND attempt = %(attempt)s AND task = %(task)s AND state = 'queued'
"""


def put_back(run_id: UUID, attempt: int, task: str, reason: str, wait: timedelta) -> bool:
    """Let a queued run wait in the ledger for a while, at the same attempt; return whether it does.

    What has been claimed, cancelled or sent on meanwhile stays as it is.
    """
    parameters: dict[str, Any] = {
        "id": run_id, "attempt": attempt, "task": task, "reason": reason, "wait": wait,
    }  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(PUT_BACK, parameters)
        return bool(cursor.rowcount)


def hand_back_unknown(run_id: UUID, attempt: int, task: str, worker: str) -> bool:
    """Send a queued run back to wait: the worker that took its hint does not know its task.

    Returns:
        Whether it did. A run that is not queued any more (this was a second hint) stays as it is.
    """
    reason = f"no worker knows task {task} (last asked: {worker})"
    found = put_back(run_id, attempt, task, reason, UNKNOWN_FOR)
    if found:
        event(logger, "task_unknown", level=logging.ERROR, run=run_id, task=task, worker=worker)
    return found
