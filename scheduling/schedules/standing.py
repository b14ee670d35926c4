"""The standing of schedules, as users see it: the next occurrence, or why there is not one."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.db.models import QuerySet
from django_celery_beat.models import PeriodicTask

from scheduling import clock, recurrence
from scheduling.errors import ScheduleError
from scheduling.models import Plan, Policy, Schedule
from scheduling.schedules import planning
from scheduling.schedules.rule_rows import CRON_FIELDS
from scheduling.schedules.rules import fields_of, rule_of


@dataclass(frozen=True)
class Standing:
    """A schedule with its policy and its plan, as users see them.

    `rule` and `timezone` are for people; only crontabs have a zone. `problem` is why it cannot be
    planned, or "".
    """

    schedule: PeriodicTask
    policy: Policy
    rule: str
    timezone: str | None
    next_due_at: datetime | None
    last_due_at: datetime | None
    problem: str


def standings() -> Iterator[Standing]:
    """Yield every schedule, by name, in bounded memory."""
    for schedule in with_rows().order_by("name").iterator(chunk_size=1000):
        yield standing(schedule)


def standing(schedule: PeriodicTask) -> Standing:
    """Return where a schedule stands."""
    plan, crontab = plan_of(schedule), schedule.crontab
    return Standing(
        schedule=schedule,
        policy=policy_of(schedule),
        rule=_rule_text(schedule, plan),
        timezone=str(crontab.timezone or "UTC") if crontab else None,
        next_due_at=plan.next_due_at,
        last_due_at=plan.last_due_at,
        problem=plan.error,
    )


def with_rows() -> QuerySet[Any]:
    """Return the schedules with every row that tells when and how they run."""
    rows: QuerySet[Any] = Schedule.objects.select_related(
        "crontab", "interval", "clocked", "solar", "policy__calendar", "plan"
    )
    return rows


def policy_of(schedule: PeriodicTask) -> Policy:
    """Return the schedule's policy; one without has the defaults."""
    policy: Policy | None = getattr(schedule, "policy", None)
    return policy or Policy(schedule=schedule)


def plan_of(schedule: PeriodicTask) -> Plan:
    """Return the schedule's plan; if beat has not made it yet, it is computed here in the same way.

    An occurrence that was due before an edit stays until beat has fired it.
    """
    plan: Plan | None = getattr(schedule, "plan", None)
    plan = plan or Plan(schedule=schedule, plan_from=clock.now())
    overdue = plan.next_due_at is not None and plan.next_due_at <= plan.plan_from
    if plan.needs_plan and not overdue:
        planned = planning.plan(_changed(schedule, plan))
        plan.next_due_at, plan.anchor_at = planned.next_due_at, planned.anchor_at
        plan.error = planned.error
    return plan


def is_paused(policy: Policy, now: datetime) -> bool:
    """Return whether a pause stands at `now`."""
    until = policy.paused_until
    return policy.paused_at is not None and (until is None or until > now)


def removed_meanwhile(schedule: PeriodicTask) -> ScheduleError:
    """Return the error for a schedule that another user has removed since it was fetched."""
    return ScheduleError(f"schedule {schedule.name!r} has been removed meanwhile.")


def _changed(schedule: PeriodicTask, plan: Plan) -> planning.Changed:
    policy = policy_of(schedule)
    return planning.Changed(
        schedule_id=schedule.pk,
        plan_from=plan.plan_from,
        anchor_at=plan.anchor_at,
        last_due_at=plan.last_due_at,
        rule=plan.rule,
        done=plan.done,
        enabled=schedule.enabled,
        task=schedule.task,
        args=schedule.args or "[]",
        kwargs=schedule.kwargs or "{}",
        paused_at=policy.paused_at,
        paused_until=policy.paused_until,
        fields=fields_of(schedule),
    )


def _rule_text(schedule: PeriodicTask, plan: Plan) -> str:
    """Return the rule without the zone that stands beside it."""
    crontab, clocked = schedule.crontab, schedule.clocked
    if crontab:
        return " ".join(getattr(crontab, field) for field in CRON_FIELDS)
    if clocked:
        return f"once at {clocked.clocked_time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    try:
        return recurrence.describe(rule_of(schedule, anchor=plan.anchor_at))
    except recurrence.RecurrenceError:
        return str(schedule.scheduler or "no rule")
