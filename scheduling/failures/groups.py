"""Failure groups: beat counts failures of one kind in them; users resolve and reopen them.

A failed run notes its failure in the statement that ends it. Beat settles noted failures before it
fires: it counts each in its group, marks news for the owners, and pauses schedules that the end of
the run could not pause. Rows that another transaction has locked are left for later.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.db import OperationalError, connection, transaction

from scheduling import clock
from scheduling.failures import alerts, streaks
from scheduling.failures.noting import group_id
from scheduling.logs import event
from scheduling.models import Failure, FailureGroup, News

logger = logging.getLogger(__name__)

BATCH = 1000
SCHEDULES_MAX = 100
# A failure waits this long for a schedule that is locked; then the next failure decides.
PATIENCE = timedelta(minutes=1)
STREAKS_LOOKED_AT = 20  # of one group, each time

BE_BRIEF = """
SET LOCAL lock_timeout = '100ms'; SET LOCAL idle_in_transaction_session_timeout = '10s'
"""
COUNTED = (
    "last_seen_at", "count", "last_error", "last_run_id", "schedules", "untold", "news",
    "resolved_at", "resolved_by",
)  # fmt: skip


def settle(low: datetime, limit: int = BATCH) -> int:
    """Settle up to `limit` failures that were noted after `low`; return how many."""
    try:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute(BE_BRIEF)
            return _settle(low, limit)
    except OperationalError as error:
        if not streaks.is_lock_timeout(error):
            raise
        event(logger, "failures_wait", level=logging.WARNING, error=error)
        return 0


def _settle(low: datetime, limit: int) -> int:
    noted = Failure.objects.filter(noted_at__gt=low).order_by("noted_at", "id")
    taken = list(noted.select_for_update(skip_locked=True)[:limit])
    if not taken:
        return 0
    now = clock.now()
    paused, locked = streaks.pause_where_due(taken, now)
    for each in (*paused, *streaks.unreported_pauses(taken)):
        alerts.report_pause(each)
    ready = [
        failure
        for failure in taken
        if failure.schedule_id not in locked or failure.noted_at < now - PATIENCE
    ]
    counted = _count(ready, now)
    Failure.objects.filter(pk__in=[failure.pk for failure in counted]).delete()
    if counted:
        event(logger, "failures_settled", failures=len(counted), paused=len(paused))
    return len(counted)


def _count(failures: Iterable[Failure], now: datetime) -> list[Failure]:
    """Add the failures to their groups; return those whose group is not locked."""
    kinds: dict[UUID, list[Failure]] = defaultdict(list)
    for failure in failures:
        kinds[group_id(failure.task, failure.exception, failure.place)].append(failure)
    ids = sorted(kinds)
    known = set(FailureGroup.objects.filter(pk__in=ids).values_list("pk", flat=True))
    new = [_new(key, kinds[key][0]) for key in ids if key not in known]
    FailureGroup.objects.bulk_create(new, ignore_conflicts=True)
    free = FailureGroup.objects.select_for_update(skip_locked=True, no_key=True)
    groups = list(free.filter(pk__in=ids).order_by("pk"))
    for group in groups:
        _add(group, kinds[group.pk], now)
    # This transaction has locked each of these rows, so only the update happens.
    FailureGroup.objects.bulk_create(
        groups, update_conflicts=True, unique_fields=["id"], update_fields=COUNTED
    )
    return [failure for group in groups for failure in kinds[group.pk]]


def _new(key: UUID, failure: Failure) -> FailureGroup:
    return FailureGroup(
        id=key,
        task=failure.task,
        exception=failure.exception,
        place=failure.place,
        first_seen_at=failure.noted_at,
        last_seen_at=failure.noted_at,
        last_error=failure.error,
        last_run_id=failure.run_id,
    )


def _add(group: FailureGroup, failures: Sequence[Failure], now: datetime) -> None:
    last = failures[-1]
    group.news = group.news or _news(group, failures, now)
    group.count += len(failures)
    group.last_seen_at = max(group.last_seen_at, last.noted_at)
    group.last_error, group.last_run_id = last.error, last.run_id
    group.resolved_at, group.resolved_by = None, ""
    names = [failure.schedule_name for failure in failures]
    group.schedules = _united(group.schedules, [name for name in names if name])
    group.untold = _united(group.untold, names)


def _news(group: FailureGroup, failures: Sequence[Failure], now: datetime) -> str:
    """Return why the group's owners receive a message about these failures, or ""."""
    if group.task in alerts.OWN_TASKS or not alerts.has_owners(failures):
        return ""
    if group.count == 0:
        return News.NEW
    if group.told_at is not None and group.told_at > now - settings.ALERT_EVERY:
        return ""
    if group.resolved_at is not None or group.last_seen_at < now - settings.ALERT_QUIET:
        return News.BACK
    return News.IN_ROW if _in_a_row(failures) else ""


def _in_a_row(failures: Sequence[Failure]) -> bool:
    length = settings.ALERT_AFTER_FAILURES
    if length < 1:
        return False
    ids = {failure.schedule_id for failure in failures if failure.schedule_id is not None}
    if any(streaks.of_schedule(key, length) for key in sorted(ids)[:STREAKS_LOOKED_AT]):
        return True
    adhoc = any(failure.schedule_id is None for failure in failures)
    return adhoc and streaks.of_task(failures[0].task, length)


def _united(names: Sequence[str], more: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*names, *more]))[:SCHEDULES_MAX]


# --- Actions of users -----------------------------------------------------------------------------


def resolve(ids: Iterable[UUID], *, by: str) -> int:
    """Resolve groups: their next failure is reported at once; return how many were open."""
    found = FailureGroup.objects.filter(pk__in=list(ids), resolved_at__isnull=True)
    count = found.update(resolved_at=clock.now(), resolved_by=by[:150], told_at=None, news="")
    if count:
        event(logger, "failures_resolved", groups=count, by=by)
    return count


def reopen(ids: Iterable[UUID], *, by: str) -> int:
    """Reopen groups; return how many were resolved."""
    found = FailureGroup.objects.filter(pk__in=list(ids), resolved_at__isnull=False)
    count = found.update(resolved_at=None, resolved_by="")
    if count:
        event(logger, "failures_reopened", groups=count, by=by)
    return count
