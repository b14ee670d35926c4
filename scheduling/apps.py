from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class SchedulingConfig(AppConfig):
    name = "scheduling"
    verbose_name = "Scheduling"

    def ready(self) -> None:
        from scheduling import checks  # noqa: F401  (registers them)

        # Django's own hook for rows that belong to code, as for permissions.
        post_migrate.connect(sync_code_schedules, sender=self)


def sync_code_schedules(**_: Any) -> None:
    """After every `migrate`: write the schedules that live in CELERY_BEAT_SCHEDULE."""
    from scheduling.code_schedules import sync

    sync()
