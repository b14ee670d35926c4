"""System checks of tasks, schedules and plans."""

from collections.abc import Sequence
from typing import Any

from celery import current_app
from django.apps import AppConfig
from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.exceptions import ValidationError
from django.db import DatabaseError

from scheduling.base_job import BaseJob
from scheduling.checks import settings as setting_checks
from scheduling.errors import ScheduleError
from scheduling.history.selecting import NOT_ENDED
from scheduling.models import Run, Schedule
from scheduling.outgoing import addresses
from scheduling.registry import job_names, known_names
from scheduling.schedules import code_entries, from_code, reconciling, upgrade_check
from scheduling.schedules.planning import rule_version


def _ledger_in(databases: Sequence[str] | None) -> bool:
    """Return whether to check the ledger: it is selected, and the settings are fit for it."""
    return bool(databases) and "default" in (databases or ()) and setting_checks.fit()


@register()
def check_alerts_to(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Each entry of ALERTS_TO must be a mail address or a URL."""
    try:
        addresses.validate(",".join(getattr(settings, "ALERTS_TO", ())))
    except ValidationError as error:
        return [
            Error(
                f"ALERTS_TO: {' '.join(error.messages)}",
                hint="Without it, no user is notified of failures of schedules without an owner.",
                id="scheduling.E003",
            )
        ]
    return []


@register()
def check_tasks_are_jobs(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """A task whose class is not a Job would run without a claim."""
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
    """An unreadable entry of CELERY_BEAT_SCHEDULE keeps every schedule of code unwritten."""
    if not setting_checks.fit():
        return []
    found: list[CheckMessage] = [
        Error(
            problem,
            hint="No schedule of code is written until this is corrected.",
            id="scheduling.E004",
        )
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
    """Schedules of users that have the name of an entry of code but differ from it."""
    try:
        if not _ledger_in(databases):
            return []
        left = from_code.compare().left
    except (DatabaseError, ScheduleError):  # not migrated yet; the other check names a bad entry
        return []
    return [
        checks.Warning(
            f"A user's schedule differs from the code's of the same name: {line[2:]}.",
            hint="`manage.py schedule sync --take-over NAME` lets code manage it.",
            id="scheduling.W004",
        )
        for line in left
    ]


@register(Tags.database)
def check_plans_are_current(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **_: Any
) -> list[CheckMessage]:
    """Plans that another version of the rules, or of the time zone data, has made."""
    try:
        if not _ledger_in(databases) or not upgrade_check.is_due():
            return []
    except DatabaseError:  # not migrated yet
        return []
    return [
        checks.Warning(
            f"Some plans were not made by {rule_version()}.",
            hint="`manage.py schedule audit` lists moved ones; with --fix, beat plans them again.",
            id="scheduling.W002",
        )
    ]


@register(Tags.database)
def check_triggers_act(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **_: Any
) -> list[CheckMessage]:
    """Schedules without a plan, and triggers that do not act."""
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
                "Some schedules have no plan, so they never fire. No trigger acted when they were"
                " written.",
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
    """Schedules and waiting runs whose task is not defined in this project."""
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
                f"There are {rows} of task {task!r}, which is unknown here.",
                hint="Define the task, give a renamed task `aliases`, or remove these rows.",
                id="scheduling.W001",
            )
            for rows, tasks in unknown.items()
            for task in tasks
        ]
    except DatabaseError:  # not migrated yet
        return []
