"""The attributes of a job that the engine reads; `scheduling.jobs.Job` adds the calls."""

from collections.abc import Sequence
from typing import Any

from celery import current_app
from celery.contrib.django.task import DjangoTask

_discovery_begun = False


def discover() -> None:
    """Import every tasks.py, once; Celery runs the system checks then, and they come here again."""
    global _discovery_begun
    if not _discovery_begun:
        _discovery_begun = True
        current_app.loader.import_default_modules()
        current_app.finalize(auto=True)


def known_task(name: str) -> Any:
    """Return the task of that name, or None if this process does not know it."""
    if name not in current_app.tasks:
        discover()
    return current_app.tasks.get(name)


class BaseJob(DjangoTask[..., Any]):
    """A task that may be run by the ledger.

    `max_attempts` (an option of the decorator) is how many attempts may fail before a run has
    failed; settings.DEFAULT_MAX_ATTEMPTS if neither it nor Celery's `autoretry_for` is given.
    `aliases` are former names of the task: schedules and runs that still have one run this task.
    """

    abstract = True
    max_attempts: int | None = None
    aliases: Sequence[str] = ()
