"""A project of django-celery-beat's own scheduler changes over, as docs/adopting.md says.

Its tasks, entries, routes and base classes stay as they are.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import redis

from config.embedded.processes import ROOT
from tests.empty_database import Database, empty_database, url_of
from tests.system.processes import System, SystemProcess
from tests.waiting import wait_for

CELERY = """
    import os

    from celery import Celery

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")

    app = Celery("shop")
    app.config_from_object("django.conf:settings", namespace="CELERY")
    app.autodiscover_tasks()


    @app.on_after_configure.connect
    def add_entries(sender, **kwargs):
        from shop.tasks import hello

        sender.add_periodic_task(1.0, hello.s("after configure"), name="after configure")
"""

SETTINGS = """
    import os

    import environ
    from celery.schedules import crontab

    SECRET_KEY = "s" * 20 + "0123456789" * 4
    INSTALLED_APPS = [
        "django.contrib.contenttypes",
        "django.contrib.auth",
        "django_celery_beat",
        "django_celery_results",
        "shop",
    ]
    DATABASES = {"default": environ.Env().db_url("DATABASE_URL")}
    DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
    TIME_ZONE = "Europe/Berlin"
    USE_TZ = True
    CELERY_BROKER_URL = os.environ["REDIS_URL"]
    CELERY_RESULT_BACKEND = "django-db"
    CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
    CELERY_TIMEZONE = "Europe/Berlin"
    CELERY_TASK_ROUTES = {"shop.tasks.routed": {"queue": "slow"}}
    CELERY_BEAT_SCHEDULE = {
        "in settings": {
            "task": "shop.tasks.hello", "schedule": 1.0, "args": ("in settings",),
            "options": {"expires": 60},
        },
        "routed": {"task": "shop.tasks.routed", "schedule": 1.0, "args": ("routed",)},
        "in its context": {
            "task": "shop.tasks.in_context", "schedule": 1.0, "kwargs": {"who": "in its context"},
        },
        "abortable": {"task": "shop.tasks.abortable", "schedule": 1.0, "args": ("abortable",)},
        "broken": {"task": "shop.tasks.broken", "schedule": 1.0},
        "by class": {"task": "shop.tasks.by_class", "schedule": 1.0, "args": ("by class",)},
        "nightly": {"task": "shop.tasks.hello", "schedule": crontab(minute=0, hour=3)},
    }
"""

TASKS = '''
    import os

    from celery import Task, current_app, shared_task
    from celery.contrib.abortable import AbortableTask


    def note(text):
        with open(os.environ["EVIDENCE"], "a") as file:
            file.write(text + "\\n")


    class InContext(Task):
        """Opens a context around the body."""

        def __call__(self, *args, **kwargs):
            note("entered")
            return self.run(*args, **kwargs)


    @shared_task
    def hello(who="NONAME"):
        note(who)


    @shared_task(autoretry_for=(ValueError,), max_retries=0)
    def broken():
        raise ValueError("it is broken")


    @shared_task
    def routed(who="NONAME"):
        note(who)


    @shared_task(base=InContext)
    def in_context(who="NONAME"):
        note(who)


    @shared_task(bind=True, base=AbortableTask)
    def abortable(self, who="NONAME"):
        note(f"{who} {self.is_aborted()}")


    class ByClass(Task):
        name = "shop.tasks.by_class"

        def run(self, who="NONAME"):
            note(who)


    @current_app.on_after_finalize.connect
    def add_entries(sender, **kwargs):
        sender.add_periodic_task(1.0, hello.s("after finalize"), name="after finalize")


    current_app.register_task(ByClass())

'''

# As docs/adopting.md asks.
IMPORT = ("from celery import Celery\n", "from scheduling.celery_app.app import App\n")
APP = ('app = Celery("shop")', 'app = App("shop")')
LAST = """
    INSTALLED_APPS += ["scheduling"]
    from scheduling.defaults import *
    REDIS_URL = CELERY_BROKER_URL
"""

FIRED = {
    "after configure", "after finalize", "in settings", "routed", "in its context",
    "abortable False", "by class", "a user's",
}  # fmt: skip


class Shop:
    """The project, in a directory of its own, and its processes."""

    def __init__(self, system: System, directory: Path, database: Database) -> None:
        self._system = system
        self._package = directory / "project" / "shop"
        self._package.mkdir(parents=True)
        self.evidence = directory / "evidence"
        self.evidence.touch()
        self.write("__init__.py", "from .celery import app as celery_app\n")
        self.write("celery.py", dedent(CELERY))
        self.write("settings.py", dedent(SETTINGS))
        self.write("tasks.py", dedent(TASKS))
        self.env = {
            "PYTHONPATH": f"{self._package.parent}:{ROOT}",
            "DJANGO_SETTINGS_MODULE": "shop.settings",
            "DATABASE_URL": url_of(database),
            "EVIDENCE": str(self.evidence),
        }

    def read(self, name: str) -> str:
        return (self._package / name).read_text()

    def write(self, name: str, text: str) -> None:
        (self._package / name).write_text(text)

    def adopt(self) -> None:
        celery = self.read("celery.py")
        for old, new in (IMPORT, APP):
            assert old in celery
            celery = celery.replace(old, new)
        self.write("celery.py", celery)
        self.write("settings.py", self.read("settings.py") + dedent(LAST))

    def manage(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "django", *words],
            env={**self._system.env, **self.env}, capture_output=True, text=True, check=False,
            timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def beat(self) -> SystemProcess:
        return self._system.start("beat", "celery", "-A", "shop", "beat", "-l", "INFO", **self.env)

    def worker(self, name: str) -> SystemProcess:
        words = ("-Q", "celery,slow", "-c", "2", "-l", "INFO", "-n", f"{name}@%h")
        started = self._system.start("worker", "celery", "-A", "shop", "worker", *words, **self.env)
        return started.wait_until_said(" ready.")

    def noted(self) -> set[str]:
        return set(self.evidence.read_text().splitlines())


@pytest.fixture
def database(django_db_setup: None) -> Iterator[Database]:
    with empty_database() as own:
        yield own


def test_a_project_of_django_celery_beat_changes_over_with_its_code_as_it_is(
    redis_client: redis.Redis, service_env: dict[str, str], tmp_path: Path, database: Database
) -> None:
    with System({**service_env, "RUN_LEASE_SECONDS": "3"}, tmp_path) as system:
        shop = Shop(system, tmp_path, database)
        shop.manage("migrate")
        database.execute(
            "INSERT INTO django_celery_beat_intervalschedule (every, period) VALUES (1, 'seconds')"
        )
        database.execute(
            "INSERT INTO django_celery_beat_periodictask (name, task, args, kwargs, interval_id,"
            " enabled, one_off, total_run_count, date_changed, description, headers)"
            " SELECT 'a user''s', 'shop.tasks.hello', %s, '{}', id, true, false, 0, now(), '', '{}'"
            " FROM django_celery_beat_intervalschedule",
            ['["a user\'s"]'],
        )
        database.execute(
            "INSERT INTO django_celery_beat_crontabschedule (minute, hour, day_of_month,"
            " month_of_year, day_of_week, timezone) SELECT '0', '4', '*', '*', '*', 'Europe/Berlin'"
            " FROM generate_series(1, 2)"
        )
        old = shop.beat()
        wait_for(lambda: rows(database) >= 11, timeout=30)
        old.kill()
        redis_client.flushdb()

        worker = shop.worker("stock")  # of the release before, while the new one starts
        shop.adopt()
        said = shop.manage("migrate")
        for name in ("in settings", "after configure", "after finalize", "celery.backend_cleanup"):
            assert f"= {name}: now belongs to code" in said
        assert "\n  !" not in said
        assert (
            shop.manage("schedule", "sync") == "The schedules already match CELERY_BEAT_SCHEDULE.\n"
        )
        assert "no issues" in shop.manage("check")
        shop.beat()
        worker.wait_until_said("Received and deleted unknown message")
        assert shop.noted() == set()
        worker.stop()

        shop.worker("ours")
        wait_for(lambda: shop.noted() >= FIRED, timeout=40)
        assert "NONAME" not in shop.noted()
        assert shop.noted() - FIRED == {"entered"}
        failed = "SELECT DISTINCT task FROM scheduling_run WHERE state = 'failed' OR attempt > 1"
        wait_for(lambda: database.execute(failed).fetchall() == [("shop.tasks.broken",)])
        places = "SELECT DISTINCT exception FROM scheduling_failure"
        assert database.execute(places).fetchall() == [("ValueError",)]


def rows(database: Database) -> int:
    found: Any = database.execute("SELECT count(*) FROM django_celery_beat_periodictask").fetchone()
    return int(found[0])
