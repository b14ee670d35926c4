"""Schedules that live in code: CELERY_BEAT_SCHEDULE, in Celery's own format, written to the ledger.

`migrate` calls `sync` at its end. A schedule that code made is code's: it follows the setting, and
goes when its entry goes. A row that a user made is never touched.
"""

import copy
import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from celery import current_app, schedules
from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django_celery_beat.models import PeriodicTask, SolarSchedule

from scheduling import clock, recurrence
from scheduling.errors import EnqueueError, ScheduleError
from scheduling.models import ManagedBy, Policy
from scheduling.postgres.sql import clean
from scheduling.registry import encode
from scheduling.schedules import policies
from scheduling.schedules.rule_rows import Cron, Every, row_of
from scheduling.schedules.rules import rule_of

# What an entry of Celery's own format may have, and what is added to it.
LENGTHS = ("catch_up_window", "spread", "deadline_after")
KEYS = ("task", "schedule", "args", "kwargs", "options", "relative", "policy")
OPTIONS = ("queue", "exchange", "routing_key", "priority", "headers", "expires")
# Of a message, where a hint is none that an entry could shape: they make no difference here.
OF_MESSAGES = ("serializer", "compression", "delivery_mode", "retry", "retry_policy")
RULES = ("crontab_id", "interval_id", "solar_id", "clocked_id")

# Two machines may be deployed to at once: the second one sees what the first one wrote.
ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(hashtext('scheduling_code_schedules'))"

# What code's schedules follow is locked before any of their plans: whoever edits a rule or a
# calendar has locked that first, and may wait for plans.
HOLD = """
SELECT scheduling_hold_rules(array_agg(DISTINCT t.crontab_id), array_agg(DISTINCT t.interval_id),
                             array_agg(DISTINCT t.clocked_id), array_agg(DISTINCT t.solar_id)),
    scheduling_hold_calendars(array_agg(DISTINCT y.calendar_id))
  FROM scheduling_policy y JOIN django_celery_beat_periodictask t ON t.id = y.schedule_id
 WHERE y.managed_by = 'code'
"""


def sync() -> list[str]:
    """Make the ledger's code-managed schedules what CELERY_BEAT_SCHEDULE says.

    An entry's `policy` says how it is treated: a policy that it does not name has its default, and
    a pause, which belongs to operators, stays.

    Returns:
        One line for each change: `+ name: rule`, `~ name: what: old -> new; ...`, `- name`.

    Raises:
        ScheduleError: an entry has the name of a user's schedule, cannot be read, or never fires.
            Nothing is changed then.
    """
    entries = {**_of_celery(), **settings.CELERY_BEAT_SCHEDULE}
    for name in entries:
        if not isinstance(name, str) or clean(name) != name:
            raise ScheduleError(f"CELERY_BEAT_SCHEDULE has the name {name!r}: give a text.")
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(ONE_AT_A_TIME)
            cursor.execute(HOLD)
        lines = [line for name, entry in sorted(entries.items()) if (line := _write(name, entry))]
        return lines + _prune(set(entries))


def _of_celery() -> dict[str, Mapping[str, Any]]:
    """Return the entry that Celery's own beat would add: results are kept for `result_expires`."""
    if not current_app.conf.result_expires:
        return {}
    return {
        "celery.backend_cleanup": {
            "task": "celery.backend_cleanup",
            "schedule": schedules.crontab("0", "4", "*"),
            "options": {"expires": 12 * 3600},
        }
    }


def _write(name: str, entry: Mapping[str, Any]) -> str | None:
    where = f"CELERY_BEAT_SCHEDULE[{name!r}]"
    entry = _mapping(f"{where} is", entry)
    try:
        wanted = _columns(name, entry)
    except (recurrence.RecurrenceError, EnqueueError) as error:
        raise ScheduleError(f"{where}: {error}") from None
    policy = _policy(name, entry.get("policy") or {})
    found = PeriodicTask.objects.select_for_update().filter(name=name).first()
    if found is None:
        return _add(PeriodicTask(name=name, **wanted), policy)
    treated = Policy.objects.filter(schedule=found, managed_by=ManagedBy.CODE).first()
    if treated is None:
        raise _clash(name, f" (id {found.pk})")
    changed = {field: value for field, value in wanted.items() if getattr(found, field) != value}
    treatment = policies.differences(treated, policy)
    if not changed and not treatment:
        return None
    edited = copy.copy(found)
    for field, value in changed.items():
        setattr(edited, field, value)
    _check(edited, policy)
    if treatment:
        policies.write(found, {column: policy[column] for column in treatment})
    if changed:
        PeriodicTask.objects.filter(pk=found.pk).update(**changed)
    differences = {
        field: (getattr(found, field), value)
        for field, value in sorted(changed.items())
        if field not in RULES
    }
    if changed.keys() & set(RULES):
        differences = {"rule": (_rule_text(found), _rule_text(edited)), **differences}
    differences |= {f"policy {column}": pair for column, pair in sorted(treatment.items())}
    words = (f"{what}: {_text(old)} -> {_text(new)}" for what, (old, new) in differences.items())
    return f"~ {name}: {'; '.join(words)}"


def _add(schedule: PeriodicTask, policy: Mapping[str, Any]) -> str:
    _check(schedule, policy)
    try:
        schedule.save()
    except IntegrityError:  # a user has made it at this very moment
        raise _clash(schedule.name) from None
    policies.write(schedule, {**policy, "managed_by": ManagedBy.CODE})
    return f"+ {schedule.name}: {_rule_text(schedule)}"


def _clash(name: str, which: str = "") -> ScheduleError:
    return ScheduleError(
        f"CELERY_BEAT_SCHEDULE has an entry {name!r}, and so has a user's schedule{which}:"
        " rename one of them."
    )


def _check(schedule: PeriodicTask, policy: Mapping[str, Any]) -> None:
    """Refuse columns that cannot be kept, and a rule that never fires."""
    now, treated = clock.now(), copy.copy(schedule)
    treated.policy = Policy(**policy)
    try:
        policies.check_columns(schedule)
        recurrence.check(rule_of(treated, anchor=now), now)
    except (ScheduleError, recurrence.RecurrenceError) as error:
        raise ScheduleError(f"CELERY_BEAT_SCHEDULE[{schedule.name!r}]: {error}") from None


def _rule_text(schedule: PeriodicTask) -> str:
    try:
        return recurrence.describe(rule_of(schedule, anchor=clock.now()))
    except recurrence.RecurrenceError:
        return str(schedule.scheduler or "none")


def _text(value: Any) -> str:
    return "none" if value is None or value == "" else str(value)


def _prune(names: set[str]) -> list[str]:
    gone = PeriodicTask.objects.filter(policy__managed_by=ManagedBy.CODE).exclude(name__in=names)
    lines = [f"- {name}" for name in gone.order_by("name").values_list("name", flat=True)]
    gone.delete()
    return lines


def _policy(name: str, options: Any) -> dict[str, Any]:
    """Return all columns of the policy that an entry asks for."""
    where = f"CELERY_BEAT_SCHEDULE[{name!r}]"
    if not isinstance(options, Mapping):
        raise ScheduleError(f"{where} has the policy {options!r}: give a dict.")
    try:
        asked = {key: _length(value) if key in LENGTHS else value for key, value in options.items()}
        columns = policies.checked(asked)
    except ScheduleError as error:
        raise ScheduleError(f"{where}, policy: {error}") from None
    default = Policy()
    return {column: getattr(default, column) for column in policies.POLICIES} | columns


def _length(value: Any) -> Any:
    """Return seconds as a timedelta; what is none is refused where the column is checked."""
    if isinstance(value, int | float):
        try:
            return timedelta(seconds=value)
        except (OverflowError, ValueError):
            raise ScheduleError(f"{value!r} is not a length of time.") from None
    return value


def _columns(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    for key in entry:
        if key not in KEYS:
            raise ScheduleError(
                f"CELERY_BEAT_SCHEDULE[{name!r}] has {key!r}, which is none of {', '.join(KEYS)}."
            )
    where = f"CELERY_BEAT_SCHEDULE[{name!r}]"
    options = _mapping(f"{where} has the options", entry.get("options") or {})
    for option in options:
        if option not in (*OPTIONS, *OF_MESSAGES):
            raise ScheduleError(
                f"{where} has the option {option!r}, which is none of {', '.join(OPTIONS)}: what is"
                " the same for all runs of a task is the task's to say."
            )
    args = entry.get("args") or ()
    if not isinstance(args, list | tuple):
        raise ScheduleError(f"{where} has the args {args!r}: give a list.")
    if entry.get("relative"):
        raise ScheduleError(f"{where} is relative to the clock: give a crontab for that.")
    try:
        task = entry["task"]
        rule = _rule(name, entry["schedule"])
    except KeyError as missing:
        raise ScheduleError(f"{where} has no {missing}.") from None
    return {
        **dict.fromkeys(RULES),
        **rule,
        "task": task,
        "args": encode(list(args)),
        "kwargs": encode(_mapping(f"{where} has the kwargs", entry.get("kwargs") or {})),
        "queue": options.get("queue"),
        "exchange": getattr(exchange := options.get("exchange"), "name", exchange),
        "routing_key": options.get("routing_key"),
        "priority": options.get("priority"),
        "headers": encode(_mapping(f"{where} has the headers", options.get("headers") or {})),
        "expire_seconds": _expire_seconds(name, options.get("expires")),
    }


def _mapping(has: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ScheduleError(f"{has} {value!r}: give a dict.")
    return dict(value)


def _expire_seconds(name: str, expires: Any) -> int | None:
    if isinstance(expires, timedelta):
        expires = expires.total_seconds()
    if expires is None:
        return None
    if isinstance(expires, int | float) and math.isfinite(expires):
        return math.ceil(expires)
    raise ScheduleError(
        f"CELERY_BEAT_SCHEDULE[{name!r}] has the option expires={expires!r}: give seconds."
    )


def _rule(name: str, schedule: Any) -> dict[str, int]:
    """Return the rule's row, made where there is none yet, as a column of PeriodicTask."""
    if isinstance(schedule, schedules.BaseSchedule):
        _check_is_celerys(name, schedule)
    if isinstance(schedule, schedules.crontab):
        return {"crontab_id": _crontab(schedule).pk}
    if isinstance(schedule, schedules.solar):
        return {"solar_id": _saved(SolarSchedule.from_schedule(schedule)).pk}
    if isinstance(schedule, schedules.schedule):
        schedule = schedule.run_every  # type: ignore[attr-defined]
    if isinstance(schedule, int | float | timedelta):
        try:
            return {"interval_id": _saved(row_of(Every(_length(schedule)), clock.now())).pk}
        except ScheduleError as error:
            raise ScheduleError(f"CELERY_BEAT_SCHEDULE[{name!r}]: {error}") from None
    raise ScheduleError(
        f"CELERY_BEAT_SCHEDULE[{name!r}] has the schedule {schedule!r}: give a crontab, a "
        f"timedelta, a number of seconds or a solar event."
    )


def _check_is_celerys(name: str, schedule: Any) -> None:
    """Refuse what says by code of its own when it is due: a row cannot keep that."""
    kinds = (schedules.crontab, schedules.solar, schedules.schedule)
    if type(schedule) not in kinds:
        what = f"one of class {type(schedule).__name__}"
    elif schedule.nowfun is not None:
        what = "a clock of its own (nowfun)"
    elif getattr(schedule, "relative", False):
        what = "one that is relative to the clock"
    else:
        return
    raise ScheduleError(
        f"CELERY_BEAT_SCHEDULE[{name!r}] has the schedule {schedule!r}, {what}: give a crontab, "
        f"a timedelta, a number of seconds or a solar event."
    )


def _crontab(schedule: Any) -> Any:
    fields = (
        schedule._orig_minute,
        schedule._orig_hour,
        schedule._orig_day_of_month,
        schedule._orig_month_of_year,
        schedule._orig_day_of_week,
    )
    expression = " ".join(map(_field, fields))
    return _saved(row_of(Cron(expression, str(current_app.timezone)), clock.now()))


def _field(value: Any) -> str:
    """Return one field of a crontab, which Celery takes as text, a number or a list of numbers."""
    if isinstance(value, str | int):
        return str(value).replace(" ", "")
    return ",".join(map(str, sorted(value)))


def _saved(row: Any) -> Any:
    if row.pk is None:
        row.save()
    return row
