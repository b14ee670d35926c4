"""System checks of tasks, schedules and plans; `setting_checks` has the checks of settings."""

from collections.abc import Sequence
from typing import Any

from celery import current_app
from django.apps import AppConfig
from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.exceptions import ValidationError
from django.db import DatabaseError

from scheduling import setting_checks
from scheduling.base_job import BaseJob
from scheduling.errors import ScheduleError
from scheduling.history.selecting import NOT_ENDED
from scheduling.models import Run, Schedule
from scheduling.outgoing import addresses
from scheduling.registry import job_names, known_names
from scheduling.schedules import code_entries, from_code, reconciling, upgrade_check
from scheduling.schedules.planning import rule_version


def _ledger_in(databases: Sequence[str] | None) -> bool:
    """Return whether the ledger is to be looked at, and no setting keeps it from being one."""
    return bool(databases) and "default" in (databases or ()) and setting_checks.fit()


@register()
def check_alerts_to(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Whoever is to be told of failures must be somebody that can be told."""
    try:
        addresses.validate(",".join(getattr(settings, "ALERTS_TO", ())))
    except ValidationError as error:
        return [
            Error(
                f"ALERTS_TO: {' '.join(error.messages)}",
                hint="Without it nobody is told of failures of what has no owner.",
                id="scheduling.E003",
            )
        ]
    return []


@register()
def check_tasks_are_jobs(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """A task whose class cannot be made a Job's would run unclaimed."""
    if not setting_checks.fit():
        return []
    return [
        Error(
            f"Task {name} is a {type(current_app.tasks[name]).__mro__[1].__name__}, not a Job.",
            hint="Let its base class derive from scheduling.jobs.Job.",
            id="scheduling.E002",
        )
        for name in job_names()
        if not isinstance(current_app.tasks[name], BaseJob)
    ]


@register()
def check_code_schedules(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """An entry of the code's schedules that cannot be read would keep all of them unwritten."""
    if not setting_checks.fit():
        return []
    found: list[CheckMessage] = [
        Error(problem, hint="No schedule of code is written before that.", id="scheduling.E004")
        for problem in code_entries.problems()
    ]
    if found:
        return found
    found += [
        checks.Warning(problem, hint="Each of its runs fails.", id="scheduling.W008")
        for problem in code_entries.misfits()
    ]
    if shadowed := code_entries.shadowed():
        found.append(
            checks.Warning(
                f"CELERY_BEAT_SCHEDULE has {', '.join(map(repr, shadowed))}, which Celery does not"
                " read: code sets app.conf.beat_schedule, which replaces that setting.",
                hint="Let the code add to it: app.conf.beat_schedule |= {...}.",
                id="scheduling.W003",
            )
        )
    return found


@register(Tags.database)
def check_code_schedules_are_followed(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **_: Any
) -> list[CheckMessage]:
    """Users' schedules that have the name of an entry and say something else."""
    try:
        if not _ledger_in(databases):
            return []
        left = from_code.compare().left
    except (DatabaseError, ScheduleError):  # not migrated yet; the other check names a bad entry
        return []
    return [
        checks.Warning(
            f"A user's schedule differs from the code's of the same name: {line[2:]}.",
            hint="`manage.py schedule sync --take-over NAME` makes it the code's.",
            id="scheduling.W004",
        )
        for line in left
    ]


@register(Tags.database)
def check_plans_are_current(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **_: Any
) -> list[CheckMessage]:
    """Plans that another rule engine, or other time zone data, has made."""
    try:
        if not _ledger_in(databases) or not upgrade_check.is_due():
            return []
    except DatabaseError:  # not migrated yet
        return []
    return [
        checks.Warning(
            f"There are plans that were not made by {rule_version()}.",
            hint="`manage.py schedule audit` says what moved; with --fix they are planned anew.",
            id="scheduling.W002",
        )
    ]


@register(Tags.database)
def check_triggers_act(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **_: Any
) -> list[CheckMessage]:
    """Schedules that no trigger has given a plan, and triggers that do not act."""
    if not _ledger_in(databases):
        return []
    try:
        unplanned, asleep = reconciling.has_unplanned(), reconciling.asleep()
    except DatabaseError:  # not migrated yet
        return []
    found: list[CheckMessage] = []
    if unplanned:
        found.append(
            checks.Warning(
                "There are schedules without a plan: they never fire. No trigger acted when they"
                " were written.",
                hint="Restart beat, or run `manage.py migrate`: each gives them their plans.",
                id="scheduling.W005",
            )
        )
    if asleep:
        found.append(
            checks.Warning(
                f"Triggers are missing or do not act: {', '.join(asleep)}.",
                hint="Edits of schedules go unnoticed for up to a day. For each table:"
                " ALTER TABLE ... ENABLE TRIGGER ALL. Missing ones: restore them from a dump, or"
                " `manage.py sqlmigrate scheduling 0002` shows them.",
                id="scheduling.W006",
            )
        )
    return found


@register(Tags.database)
def check_tasks_are_known(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **_: Any
) -> list[CheckMessage]:
    """Schedules and waiting runs whose task no module of this project defines."""
    if not _ledger_in(databases):
        return []
    known = [*known_names(), "celery.backend_cleanup"]
    schedules = Schedule.objects.filter(enabled=True).exclude(task__in=known)
    runs = Run.objects.filter(NOT_ENDED).exclude(task__in=known)
    try:
        unknown = {
            "schedules": schedules.order_by().values_list("task", flat=True).distinct()[:20],
            "waiting runs": runs.order_by().values_list("task", flat=True).distinct()[:20],
        }
        return [
            checks.Warning(
                f"There are {what} of task {task!r}, which is unknown here.",
                hint="Define it, give the renamed one `aliases`, or remove them.",
                id="scheduling.W001",
            )
            for what, tasks in unknown.items()
            for task in tasks
        ]
    except DatabaseError:  # not migrated yet
        return []
