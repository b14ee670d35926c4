"""edit: changes a schedule, and shows the effect on its occurrences.

A user can look at a change before it is made. The change reaches beat through the triggers of
migration 0002, like every other edit.
"""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Model
from django_celery_beat.models import PeriodicTask
from kombu.utils.json import loads

from scheduling import clock, recurrence
from scheduling.errors import ScheduleError
from scheduling.logs import event
from scheduling.models import Policy, Schedule
from scheduling.recurrence import Difference, Rule
from scheduling.registry import check_call
from scheduling.schedules import policies
from scheduling.schedules.adding import refuse_if_code
from scheduling.schedules.destinations import refuse_without_queue
from scheduling.schedules.planning import MOMENT
from scheduling.schedules.rule_rows import Cron, Every, Once, column_of, hold, is_length, row_of
from scheduling.schedules.rules import build_rule, fields_of, rule_of, same_rule
from scheduling.schedules.standing import plan_of, policy_of, removed_meanwhile, standing, with_rows

logger = logging.getLogger(__name__)

LOOK_AHEAD = timedelta(days=30)
RULES = ("crontab", "interval", "clocked", "solar")
# Besides the rule itself, these columns can make a rule that never fires.
DECIDES_WHEN = {"start_time", "expires", "calendar", "excluded_day"}
# The other columns of a schedule that can be changed here; arguments are JSON texts.
COLUMNS = (
    "task", "args", "kwargs", "priority", "queue", "start_time", "expires", "description",
)  # fmt: skip
CALL = {"task", "args", "kwargs"}


@dataclass(frozen=True)
class Edit:
    """The changes of an edit: for each name the old and the new value.

    `rule` holds the texts of both rules if they differ. `occurrences` compares the next 30 days; it
    is None if the edit does not change when the schedule fires.
    """

    rule: tuple[str, str] | None
    columns: Mapping[str, tuple[Any, Any]]
    policy: Mapping[str, tuple[Any, Any]]
    occurrences: Difference | None

    def __bool__(self) -> bool:
        return bool(self.rule or self.columns or self.policy)


def preview(
    schedule: PeriodicTask,
    rule: Cron | Every | Once | None = None,
    columns: Mapping[str, Any] | None = None,
    policy: Mapping[str, Any] | None = None,
    *,
    now: datetime | None = None,
) -> Edit:
    """Return the changes of an edit without making it.

    Args:
        rule: the rule that takes the place of the schedule's own.
        columns: some of COLUMNS.
        policy: some of `policies.PolicyOptions`.

    Raises:
        EnqueueError: an unknown task or queue, or arguments that do not fit the task.
        ScheduleError: the schedule belongs to code, or a value that cannot be.
    """
    edited, changed, treatment = _edited(schedule, rule, columns, policy, now or clock.now())
    return _compared(schedule, edited, changed, treatment, now or clock.now())


def edit(
    schedule: PeriodicTask,
    rule: Cron | Every | Once | None = None,
    columns: Mapping[str, Any] | None = None,
    policy: Mapping[str, Any] | None = None,
    *,
    by: str,
    now: datetime | None = None,
) -> Edit:
    """Change a schedule, and its policy, in one transaction; take and raise as `preview` does.

    Other schedules that share its rule's row keep theirs: the schedule gets another row.
    """
    now = now or clock.now()
    with transaction.atomic():
        locked = Schedule.objects.select_for_update(no_key=True, of=("self",))
        if not locked.filter(pk=schedule.pk).exists():
            raise removed_meanwhile(schedule)
        schedule = with_rows().get(pk=schedule.pk)  # as the edit before this one has left it
        edited, changed, treatment = _edited(schedule, rule, columns, policy, now)
        made = _compared(schedule, edited, changed, treatment, now)
        _write(edited, changed, treatment)
    if made:
        names = [*made.columns, *made.policy, *(["rule"] if made.rule else [])]
        event(logger, "schedule_edited", schedule=schedule.pk, changed=",".join(names), by=by)
    return made


def occurrences_changed(
    before: PeriodicTask, after: PeriodicTask, now: datetime
) -> Difference | None:
    """Compare when a schedule fires in the next 30 days as it is, and as it would be.

    Returns:
        None where the edit does not touch that.
    """
    plan = plan_of(before)
    old, new = fields_of(before), fields_of(after)
    switches = [(one.enabled, one.one_off) for one in (before, after)]
    if old == new and switches[0] == switches[1]:
        return None
    anchor = plan.anchor_at or plan.plan_from
    counts_anew = new.is_interval and not same_rule(new.serialised(), old.serialised())
    was = None if plan.done else _fires(before, anchor, now)
    will = _fires(after, now if counts_anew else anchor, now)
    return recurrence.difference(was, will, now, now + LOOK_AHEAD)


def _fires(schedule: PeriodicTask, anchor: datetime, now: datetime) -> Rule | None:
    """Return the rule by which a schedule fires from now on; None if it does not."""
    if not schedule.enabled:
        return None
    try:
        rule = recurrence.working(build_rule(fields_of(schedule), anchor))
        recurrence.next_after(rule, now)  # some can be built and not be evaluated
    except recurrence.RecurrenceError:
        return None
    once = schedule.one_off and fields_of(schedule).clocked_time is None
    return recurrence.bounded(rule, not_before=now + MOMENT, one_off=True) if once else rule


def _edited(
    schedule: PeriodicTask,
    rule: Cron | Every | Once | None,
    columns: Mapping[str, Any] | None,
    policy: Mapping[str, Any] | None,
    now: datetime,
) -> tuple[PeriodicTask, dict[str, Any], dict[str, Any]]:
    """Return the edited schedule, and the changes of its row and of its policy."""
    refuse_if_code(schedule)
    wanted: dict[str, Any] = dict(columns or {})
    if unknown := wanted.keys() - set(COLUMNS):
        raise ScheduleError(f"{min(unknown)!r} cannot be changed here.")
    if isinstance(rule, Every) and schedule.interval is not None:
        # The same length in another unit would only make it count anew.
        rule = None if is_length(schedule.interval, rule.step) else rule
    try:
        if rule is not None:
            wanted |= dict.fromkeys(RULES) | {column_of(rule): row_of(rule, now)}
            wanted["one_off"] = isinstance(rule, Once)
            if plan_of(schedule).done:
                wanted["enabled"] = True  # beat disables a one-off that has fired
        changed = {name: new for name, new in wanted.items() if getattr(schedule, name) != new}
        edited = copy.copy(schedule)
        for name, value in changed.items():
            setattr(edited, name, value)
        policies.check_columns(edited)
        treatment = policies.checked(policy or {})
        if treatment:
            edited.policy = _treated(edited, treatment)
        if rule is not None or DECIDES_WHEN & {*changed, *treatment}:
            recurrence.check(rule_of(edited, anchor=now), now)
    except recurrence.RecurrenceError as error:
        raise ScheduleError(str(error)) from error
    if "expires" in changed and None not in (edited.expires, edited.expire_seconds):
        raise ScheduleError(
            f"runs of {schedule.name!r} are useless {edited.expire_seconds} s after they are due,"
            " and django-celery-beat allows no end beside that: take that out first, in the admin."
        )
    if changed.keys() & CALL:
        check_call(edited.task, loads(edited.args or "[]"), loads(edited.kwargs or "{}"))
    if changed.keys() & (CALL | {"queue"}):
        refuse_without_queue(edited)
    return edited, changed, treatment


def _treated(schedule: PeriodicTask, treatment: Mapping[str, Any]) -> Policy:
    policy = copy.copy(policy_of(schedule))
    for name, value in treatment.items():
        setattr(policy, name, value)
    return policy


def _compared(
    schedule: PeriodicTask,
    edited: PeriodicTask,
    changed: Mapping[str, Any],
    treatment: Mapping[str, Any],
    now: datetime,
) -> Edit:
    before, after = standing(schedule), standing(edited)
    texts = [" ".join(filter(None, (one.rule, one.timezone))) for one in (before, after)]
    own = {name: new for name, new in changed.items() if name in COLUMNS or name == "enabled"}
    return Edit(
        rule=(texts[0], texts[1]) if changed.keys() & set(RULES) else None,
        columns={name: (getattr(schedule, name), new) for name, new in own.items()},
        policy=policies.differences(policy_of(schedule), treatment),
        occurrences=occurrences_changed(schedule, edited, now),
    )


def _write(edited: PeriodicTask, changed: Mapping[str, Any], treatment: Mapping[str, Any]) -> None:
    for value in changed.values():
        if isinstance(value, Model) and value.pk is None:
            value.save()
    if changed and treatment:
        for name in changed.keys() & set(RULES):
            setattr(edited, name, changed[name])  # which has its id by now
        hold(edited, policy_of(edited).calendar_id)
    # The policy first: a pause at this moment locks the policy first, then the plan.
    if treatment:
        policies.write(edited, treatment)
    if changed:
        Schedule.objects.filter(pk=edited.pk).update(**changed, date_changed=clock.now())
