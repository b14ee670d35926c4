"""Pause a schedule, and resume it."""

import logging
from datetime import datetime

from django.db import IntegrityError, transaction
from django.db.models import Q
from django_celery_beat.models import PeriodicTask

from scheduling import clock
from scheduling.errors import ScheduleError
from scheduling.logs import event
from scheduling.models import Policy
from scheduling.schedules.policies import check_columns
from scheduling.schedules.standing import removed_meanwhile

logger = logging.getLogger(__name__)


def pause(
    schedule: PeriodicTask,
    *,
    by: str,
    until: datetime | None = None,
    reason: str = "",
    now: datetime | None = None,
) -> bool:
    """Pause the schedule for good or until an instant; the last call counts.

    Returns:
        Whether it was running; False if this only changed the end and the reason of a pause.
    """
    now = now or clock.now()
    if until is not None and until <= now:
        raise ScheduleError(f"a pause until {until.isoformat()} would be over already.")
    values = {"paused_until": until, "pause_reason": reason, "paused_by": by}
    check_columns(Policy(schedule=schedule, **values))
    policy = Policy.objects.filter(schedule=schedule)
    try:
        with transaction.atomic():
            Policy.objects.bulk_create([Policy(schedule=schedule)], ignore_conflicts=True)
            began = policy.exclude(paused(now)).update(paused_at=now, **values)
            if not began:
                policy.update(**values)
    except IntegrityError:
        raise removed_meanwhile(schedule) from None
    event(logger, "schedule_paused", schedule=schedule.pk, until=until, by=by)
    return bool(began)


def resume(schedule: PeriodicTask, *, by: str, now: datetime | None = None) -> bool:
    """End a pause: the next occurrence is the first one after now.

    Returns:
        Whether the schedule was paused.
    """
    now = now or clock.now()
    resumed = Policy.objects.filter(paused(now), schedule=schedule).update(
        paused_at=None, paused_until=None, pause_reason="", paused_by="", resumed_at=now
    )
    if resumed:
        event(logger, "schedule_resumed", schedule=schedule.pk, by=by)
    return bool(resumed)


def paused(now: datetime) -> Q:
    """Return the condition on Policy that a pause stands at `now`."""
    return Q(paused_at__isnull=False) & (Q(paused_until__isnull=True) | Q(paused_until__gt=now))
