"""Failures in a row: of a schedule, which is paused after enough of them, and of a task.

Only runs that succeeded or failed count; skipped, cancelled and expired runs do not. The runs of
backfills are not part of their schedule's streak.
"""

import logging
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.db import OperationalError, connection, transaction

from scheduling import schedules
from scheduling.errors import SchedulingError
from scheduling.logs import event
from scheduling.models import Failure, Policy, State

logger = logging.getLogger(__name__)

BY = "truebeat"  # in Policy.paused_by
LOCK_NOT_AVAILABLE = "55P03"
LIMIT_LOCKS = "SET LOCAL lock_timeout = '100ms'"

# Runs count in the order of their end. The index has the order in which they were due or made, so
# the query reads OVERTAKING more: it is exact if that many runs overtake one another.
OVERTAKING = 100
LAST_OF_SCHEDULE = """
SELECT state FROM (
    (SELECT state, finished_at FROM scheduling_run
      WHERE schedule_id = %(schedule_id)s AND origin = 'schedule'
        AND state IN ('succeeded', 'failed')
      ORDER BY due_at DESC LIMIT %(window)s)
    UNION ALL
    SELECT state, finished_at FROM (
        SELECT state, finished_at, origin FROM scheduling_run
         WHERE schedule_id = %(schedule_id)s AND origin <> 'schedule'
         ORDER BY id DESC LIMIT 1000) asked_for
     WHERE origin <> 'backfill' AND state IN ('succeeded', 'failed')
  ) ended
 WHERE finished_at > %(since)s::timestamptz OR %(since)s::timestamptz IS NULL
 ORDER BY finished_at DESC LIMIT %(length)s
"""

# In the order of their end, among the newest by creation, which has an index. The task's name is
# between two bounds and in the order: see `history.selecting.Selection.newest`.
LAST_OF_TASK = """
SELECT state FROM (
    SELECT state, finished_at, schedule_id FROM scheduling_run
     WHERE task >= %(task)s AND task <= %(task)s AND finished_at IS NOT NULL
     ORDER BY task DESC, id DESC LIMIT 1000) ended
 WHERE schedule_id IS NULL AND state IN ('succeeded', 'failed')
 ORDER BY finished_at DESC LIMIT %(length)s
"""


class Paused(NamedTuple):
    """A paused schedule, and the failure that caused the pause."""

    policy: Policy
    reason: str
    failure: Failure


def of_schedule(schedule_id: int, length: int, since: datetime | None = None) -> bool:
    """Return whether the last `length` runs of the schedule, all ended after `since`, failed."""
    window = length + OVERTAKING
    return _all_failed(
        LAST_OF_SCHEDULE, length, schedule_id=schedule_id, since=since, window=window
    )


def of_task(task: str, length: int) -> bool:
    """Return whether the last `length` runs of the task without a schedule have failed.

    They are found among the 1,000 newest ended runs of the task, with and without a schedule.
    """
    return _all_failed(LAST_OF_TASK, length, task=task)


def pause_if_due(run_id: UUID) -> None:
    """Pause the schedule of a failed run if its policy says so, in the transaction of its end.

    If the policy or the plan is locked, beat pauses the schedule a moment later.
    """
    watched = Policy.objects.filter(pause_after_failures__isnull=False).values("pk")
    failure = Failure.objects.filter(run_id=run_id, schedule_id__in=watched).first()
    if failure is None:
        return
    with connection.cursor() as cursor:
        cursor.execute(LIMIT_LOCKS)
    paused, _ = pause_where_due([failure], failure.noted_at)
    if paused:
        Failure.objects.filter(pk=failure.pk).update(paused=True)


def unreported_pauses(failures: Sequence[Failure]) -> list[Paused]:
    """Return pauses that ends of runs have made and that are not reported yet; each only once."""
    last = {failure.schedule_id: failure for failure in failures if failure.paused}
    if not last:
        return []
    Failure.objects.filter(pk__in=[failure.pk for failure in last.values()]).update(paused=False)
    policies = Policy.objects.filter(pk__in=list(last), paused_by=BY).select_related("schedule")
    return [Paused(policy, policy.pause_reason, last[policy.pk]) for policy in policies]


def pause_where_due(
    failures: Sequence[Failure], now: datetime
) -> tuple[list[Paused], Collection[int]]:
    """Pause the schedules of these failures whose policy says so; for one transaction.

    Returns:
        The paused schedules, and the ids of locked schedules, which are to be tried again.
    """
    last = {failure.schedule_id: failure for failure in failures if failure.schedule_id is not None}
    policies = Policy.objects.filter(pk__in=list(last), pause_after_failures__isnull=False)
    paused, locked_ids = [], set()
    for policy_id in policies.exclude(schedules.paused(now)).order_by("pk").values_list("pk"):
        key = policy_id[0]
        try:
            with transaction.atomic():
                done = _pause(key, last[key], now)
        except OperationalError as error:
            if not is_lock_timeout(error):
                raise
            locked_ids.add(key)
        except SchedulingError as error:
            event(logger, "pause_refused", level=logging.ERROR, schedule=key, error=error)
        else:
            paused += [done] if done else []
    return paused, locked_ids


def is_lock_timeout(error: OperationalError) -> bool:
    return getattr(error.__cause__, "sqlstate", None) == LOCK_NOT_AVAILABLE


def _pause(schedule_id: int, failure: Failure, now: datetime) -> Paused | None:
    """Pause one schedule if the runs since it was last resumed have failed in a row."""
    locked = Policy.objects.select_for_update(no_key=True, of=("self",)).select_related("schedule")
    policy = locked.filter(pk=schedule_id).exclude(schedules.paused(now)).first()
    if policy is None or policy.pause_after_failures is None:
        return None
    length = policy.pause_after_failures
    if not of_schedule(schedule_id, length, _since(policy)):
        return None
    runs = "1 run has" if length == 1 else f"{length} runs in a row have"
    reason = f"{runs} failed; the last one: {failure.error}"[:500]
    # The pause counts from the failure: occurrences since then do not fire.
    schedules.pause(policy.schedule, by=BY, reason=reason, now=failure.noted_at)
    return Paused(policy, reason, failure)


def _since(policy: Policy) -> datetime | None:
    """Return the instant of the last resume, or of the end of the last pause."""
    ends = [at for at in (policy.resumed_at, policy.paused_until) if at is not None]
    return max(ends, default=None)


def _all_failed(sql: str, length: int, **parameters: Any) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(sql, {**parameters, "length": length})
        states = [row[0] for row in cursor.fetchall()]
    return len(states) == length and set(states) == {State.FAILED}
