import sys
from typing import Any, TextIO

from django.apps import AppConfig
from django.core.management import CommandError
from django.db.backends.signals import connection_created
from django.db.models.signals import post_migrate


class SchedulingConfig(AppConfig):
    name = "scheduling"
    verbose_name = "Scheduling"

    def ready(self) -> None:
        from scheduling import checks  # noqa: F401  (registers its checks)
        from scheduling.postgres import connections, infinity

        # Django's own hooks: for new connections; for rows that belong to code.
        connection_created.connect(infinity.read_instants)
        connection_created.connect(connections.note_settings)
        post_migrate.connect(sync_code_schedules, sender=self)


def sync_code_schedules(*, verbosity: int = 1, stdout: TextIO | None = None, **_: Any) -> None:
    """After every `migrate`: write the schedules of CELERY_BEAT_SCHEDULE; print what changed."""
    from scheduling.errors import ScheduleError
    from scheduling.schedules.from_code import sync

    try:
        lines = sync()
    except ScheduleError as error:
        raise CommandError(str(error)) from error
    if lines and verbosity:
        text = "\n  ".join(["Schedules of CELERY_BEAT_SCHEDULE:", *lines])
        (stdout or sys.stdout).write(f"{text}\n")
