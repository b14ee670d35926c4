"""Ends waiting runs: cancelled, expired, or the follow-ups of a run that failed."""

import logging
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from celery import states
from celery.exceptions import TaskRevokedError
from django.db import connection, transaction

from scheduling.execution.finishing import apply, record
from scheduling.logs import event
from scheduling.models import WAITING_SQL, State
from scheduling.postgres.sql import clean
from scheduling.runs import follow_ups
from scheduling.runs.follow_ups import PARKED
from scheduling.runs.outcomes import Outcome, backend
from scheduling.runs.running import run_id_of
from scheduling.runs.stored_results import StoredResult

logger = logging.getLogger(__name__)

BATCH = 500  # runs that beat ends in one step

CLOSE = """
UPDATE scheduling_run SET state = %(state)s, reason = %(reason)s, finished_at = clock_timestamp()
 WHERE {which}
 RETURNING id, schedule_id, backfill_id, true AS final
"""
# Runs with follow-ups end in a transaction each: see `_close_followed`.
CLOSE_WAITING = CLOSE.format(
    which="""id = ANY (ARRAY(SELECT id FROM scheduling_run WHERE {where} AND follow_ups = ''
                        LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED))"""
)
CLOSE_ONE = CLOSE.format(which="id = %(id)s")
FOLLOWED = """
SELECT id FROM scheduling_run WHERE {where} AND follow_ups <> '' LIMIT %(limit)s
"""


def close_waiting(where: str, state: State, reason: str, parameters: dict[str, Any]) -> int:
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
    """End one waiting run and write its follow-ups, unless it is locked or has moved."""
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


# A run that has replaced itself had started in time, so its expiry does not bound its replacement.
EXPIRED = f"""
expires_at <= statement_timestamp() AND expires_at >= COALESCE(%(low)s::timestamptz, '-infinity')
AND state IN ({WAITING_SQL}) AND run_at <> %(parked)s
"""


def expire_waiting(limit: int = BATCH, low: datetime | None = None) -> int:
    """End the waiting runs whose `expires_at` has passed, at `low` or later; return how many.

    Runs that wait for another attempt expire as well: that attempt would come too late.
    """
    parameters: dict[str, Any] = {"limit": limit, "parked": PARKED, "low": low}
    return sum(
        close_waiting(
            f"{EXPIRED} AND {which}", State.EXPIRED,
            f"expired: its expiry time passed before {begin}", parameters,
        )
        for which, begin in (("attempt = 1", "it started"), ("attempt > 1", "its next attempt"))
    )  # fmt: skip


CLOSE_PARKED = CLOSE.format(which="id = %(id)s AND state = 'scheduled' AND run_at = %(parked)s")


def settle(task_id: str, result: StoredResult) -> None:
    """Store the result of a follow-up that is never sent, because the run before it failed.

    If the follow-up is the last part of a run's replacement, the replaced run ends as well.
    """
    run_id = run_id_of(task_id)
    if run_id is not None and result.status in states.PROPAGATE_STATES:
        parameters = {
            "id": run_id,
            "parked": PARKED,
            "state": State.FAILED if result.status == states.FAILURE else State.CANCELLED,
            "reason": "its replacement did not succeed",
        }
        apply(CLOSE_PARKED, parameters, None)
    record(task_id, result)
