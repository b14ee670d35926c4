"""The state of a schedule at a glance."""

from collections.abc import Collection
from datetime import datetime
from typing import Any

from django.db.models import OuterRef, Subquery
from django_celery_beat.models import PeriodicTask

from scheduling.admin.common.display import moment
from scheduling.models import ManagedBy, Origin, Run, Schedule
from scheduling.schedules.standing import is_paused, plan_of, policy_of


def is_of_code(schedule: PeriodicTask | None) -> bool:
    """Return whether only code may change the schedule."""
    return schedule is not None and policy_of(schedule).managed_by == ManagedBy.CODE


def status_of(schedule: PeriodicTask, now: datetime) -> tuple[str, str]:
    """Return the status as a colour and in words; a quarantine is shown before a pause."""
    if not schedule.enabled:
        return "disabled", "disabled"
    if plan_of(schedule).error:
        return "failed", "in quarantine"
    if is_paused(policy_of(schedule), now):
        until = policy_of(schedule).paused_until
        return "paused", f"paused until {moment(until)}" if until else "paused"
    return "succeeded", "enabled"


def newest_runs(schedules: Collection[PeriodicTask]) -> dict[int, Run]:
    """Return each schedule's newest run, planned or asked for, in one query."""
    ids = [schedule.pk for schedule in schedules]
    runs = Run.objects.defer("args", "kwargs", "options", "errors")
    of_one = Run.objects.filter(schedule_id=OuterRef("pk"), origin=Origin.SCHEDULE)
    planned = Schedule.objects.filter(pk__in=ids).values(
        newest=Subquery(of_one.order_by("-due_at").values("pk")[:1])
    )
    # A subquery of its own, so that each half uses its own index; these runs are few.
    asked_for: Any = (
        Run.objects.filter(schedule_id__in=ids)
        .exclude(origin=Origin.SCHEDULE)
        .order_by("schedule_id", "-pk")
        .distinct("schedule_id")
        .values("pk")
    )
    found = runs.filter(pk__in=planned).union(runs.filter(pk__in=asked_for), all=True)
    newest = sorted(found, key=lambda run: run.pk)
    return {run.schedule_id: run for run in newest if run.schedule_id is not None}
