"""The Django app: registers checks, prepares connections, writes code's schedules on migrate."""

import sys
from typing import Any, TextIO

from django.apps import AppConfig, apps
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError
from django.db import DEFAULT_DB_ALIAS
from django.db.backends.signals import connection_created
from django.db.models.signals import post_migrate, pre_migrate


class SchedulingConfig(AppConfig):
    name = "scheduling"
    verbose_name = "Scheduling"
    default_auto_field = "django.db.models.BigAutoField"

    def import_models(self) -> None:
        for needed in ("django_celery_beat", "django_celery_results"):
            if not apps.is_installed(needed):
                raise ImproperlyConfigured(
                    f"INSTALLED_APPS has 'scheduling' but not {needed!r}: add it before that."
                )
        super().import_models()

    def ready(self) -> None:
        from scheduling import checks  # noqa: F401  (registers its checks, and those of settings)
        from scheduling.postgres import connections, infinity, pooler, silence
        from scheduling.schedules.unknown_zones import read_unknown_zones

        read_unknown_zones()
        # Django's own signals: new connections, and the rows that belong to code.
        connection_created.connect(infinity.read_instants)
        connection_created.connect(connections.note_statements)
        connection_created.connect(silence.time_answers)
        connection_created.connect(pooler.notice)
        pre_migrate.connect(refuse_what_will_fail, sender=self)
        post_migrate.connect(sync_code_schedules, sender=self)


def refuse_what_will_fail(*, using: str, plan: Any = (), **_: Any) -> None:
    """Before `migrate` changes anything, refuse a database that cannot hold the ledger."""
    from scheduling.errors import SchedulingError
    from scheduling.postgres import rights

    own = [migration for migration, backwards in plan if migration.app_label == "scheduling"]
    if own and using == DEFAULT_DB_ALIAS:
        try:
            rights.check()
        except SchedulingError as error:
            raise CommandError(str(error)) from error


def sync_code_schedules(
    *, using: str, verbosity: int = 1, stdout: TextIO | None = None, **_: Any
) -> None:
    """After every `migrate`, write the schedules of code and print the changes.

    Also repair rows that no trigger saw, as after a restore without triggers. An error in either
    step does not end `migrate`, whose other work is done by then.
    """
    from scheduling.errors import ScheduleError
    from scheduling.postgres import rights
    from scheduling.schedules import from_code

    if using != DEFAULT_DB_ALIAS:
        return
    out = stdout or sys.stdout
    if missing := rights.missing_for_code():
        if verbosity:
            out.write(f"The schedules of code are not written yet: {missing}\n")
        return
    _repair(out if verbosity else None)
    try:
        done = from_code.sync()
    except ScheduleError as error:
        sys.stderr.write(
            f"The schedules of code were not written: {error} Correct this, then run"
            " `manage.py schedule sync`.\n"
        )
        return
    if done and verbosity:
        lines = ["Schedules of CELERY_BEAT_SCHEDULE:", *done.lines, *done.left]
        text = "\n  ".join(lines) + "\n"
        out.write(text + (f"{from_code.HOW_TO_TAKE_OVER}\n" if done.left else ""))


def _repair(out: TextIO | None) -> None:
    from django.db import Error

    from scheduling.schedules import reconciling

    try:
        found = reconciling.reconcile()
    except Error as error:
        sys.stderr.write(f"Plans were not compared with their schedules: {error}\n")
        return
    if found and out is not None:
        out.write(f"{reconciling.in_words(found)}\n")
