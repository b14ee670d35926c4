"""What the engine knows of a job; `scheduling.jobs.Job` hands its calls to the engine."""

from collections.abc import Sequence
from typing import Any

from celery.contrib.django.task import DjangoTask


class BaseJob(DjangoTask[..., Any]):
    """A task that may be run by the ledger.

    `max_attempts` (an option of the decorator) is how many attempts may fail before a run has
    failed; settings.DEFAULT_MAX_ATTEMPTS where neither it nor Celery's `autoretry_for` is given.
    `aliases` are names that the task had: schedules and runs that still hold one run it.
    """

    abstract = True
    max_attempts: int | None = None
    aliases: Sequence[str] = ()
