"""Each setting that the ledger cannot live with is an error of `manage.py check`, with a remedy."""

from typing import Any

import pytest
from celery import Celery, current_app
from celery.apps.beat import Beat
from click import ClickException
from django.apps import apps
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from pytest_django import Settings

from scheduling import beat, defaults
from scheduling.models import Run
from tests.scheduling.commands import called

pytestmark = pytest.mark.django_db

CONF: tuple[tuple[str, Any, str, str], ...] = (
    ("beat_scheduler", "django_celery_beat.schedulers:DatabaseScheduler", "E001",
     "Set it to 'scheduling.beat:Scheduler'"),
    ("beat_scheduler", "no.such:Scheduler", "E001", "Set it to"),
    ("result_backend", "django-db", "E001", "Set it to 'scheduling.celery_app.results:Backend'"),
    ("broker_transport", "redis", "E001", "Set it to 'scheduling.broker.transport:Transport'"),
    ("timezone", "Mars/Base", "E007", "CELERY_TIMEZONE = TIME_ZONE"),
    ("worker_pool", "gevent", "E011", "Set it to 'prefork' or 'threads'"),
    ("worker_prefetch_multiplier", 4, "W007", "Set CELERY_WORKER_PREFETCH_MULTIPLIER = 1"),
    ("worker_disable_prefetch", False, "W007", "Set CELERY_WORKER_DISABLE_PREFETCH = True"),
    ("broker_transport_options", {"priority_steps": [0, 5]}, "W007", "['priority_steps'] = [0, 3"),
    ("broker_transport_options", None, "W007", "['queue_order_strategy'] = 'priority'"),
)  # fmt: skip


def said() -> dict[str, str]:
    """Return the findings of the checks by their ids: problem and hint."""
    found: dict[str, str] = {}
    for check in checks.run_checks(databases=["default"], include_deployment_checks=False):
        number = str(check.id).removeprefix("scheduling.")
        found[number] = f"{found.get(number, '')}{check.msg} {check.hint}\n"
    return found


def test_the_projects_own_settings_are_those_the_ledger_needs() -> None:
    assert said() == {}


@pytest.mark.parametrize(("name", "value", "number", "remedy"), CONF)
def test_a_setting_of_celery_is_refused_with_the_line_to_change(
    monkeypatch: pytest.MonkeyPatch, name: str, value: Any, number: str, remedy: str
) -> None:
    monkeypatch.setitem(current_app.conf, name, value)
    current: Any = current_app
    monkeypatch.delitem(vars(current._get_current_object()), "timezone", raising=False)
    assert remedy in said()[number]


class Mine(beat.Scheduler):
    """A project's own scheduler, which is the ledger's."""


def test_a_part_that_is_derived_from_ours_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(current_app.conf, "beat_scheduler", f"{__name__}:Mine")
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("types").SimpleNamespace(
        Mine=Mine))  # fmt: skip
    assert "E001" not in said()


def test_another_app_is_named_with_the_lines_of_ours() -> None:
    current: Any = current_app._get_current_object()  # type: ignore[attr-defined]
    other = Celery("proj", fixups=[])
    try:
        assert (
            "app 'proj' is a celery.app.base.Celery. In the project's celery.py: from"
            in (said()["E005"])
        )
    finally:
        other.close()
        current.set_current()


def test_time_zones_must_be_on(settings: Settings) -> None:
    settings.USE_TZ = False
    assert "USE_TZ is off. Set USE_TZ = True" in said()["E007"]


class Elsewhere:
    """A router that sends some models of one app elsewhere."""

    def __init__(self, app: str, *, read: Any = None, write: Any = None, migrate: Any = None):
        self.app, self.read, self.write, self.migrate = app, read, write, migrate

    def db_for_read(self, model: Any, **_: Any) -> Any:
        return self.read if model._meta.app_label == self.app else None

    def db_for_write(self, model: Any, **_: Any) -> Any:
        return self.write if model._meta.app_label == self.app else None

    def allow_migrate(self, db: str, app_label: str, **_: Any) -> Any:
        return self.migrate if app_label == self.app else None


@pytest.mark.parametrize("app", ["scheduling", "django_celery_beat", "django_celery_results"])
@pytest.mark.parametrize("where", [{"read": "replica"}, {"write": "other"}, {"migrate": False}])
def test_a_router_that_takes_the_ledger_apart_is_refused(
    settings: Settings, app: str, where: dict[str, Any]
) -> None:
    settings.DATABASE_ROUTERS = [Elsewhere(app, **where)]
    assert f"DATABASE_ROUTERS send the models of {app} " in said()["E009"]
    assert Run._meta.app_label == "scheduling"


def test_a_router_that_leaves_the_ledger_alone_is_taken(settings: Settings) -> None:
    settings.DATABASE_ROUTERS = [Elsewhere("auth", read="replica", write="other", migrate=False)]
    assert "E009" not in said()


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("AUTOCOMMIT", False, "AUTOCOMMIT off. Remove this"),
    ],
)
def test_a_database_that_keeps_no_word_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: Any, remedy: str
) -> None:
    monkeypatch.setitem(connection.settings_dict, name, value)
    assert remedy in said()["E008"]


def test_another_database_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "vendor", "sqlite")
    assert "Set ENGINE to 'django.db.backends.postgresql'" in said()["E008"]


def test_transactions_that_see_an_old_state_are_refused() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('transaction_isolation')")
        assert cursor.fetchone() == ("read committed",)
        cursor.execute("ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ")
        try:
            assert "Transactions of the ledger are 'repeatable read'" in said()["E008"]
        finally:
            cursor.execute("ROLLBACK; BEGIN")


def test_settings_that_are_missing_are_named(settings: Settings) -> None:
    del settings.RUN_LEASE
    del settings.REDIS_URL
    assert "The settings have no RUN_LEASE, REDIS_URL." in said()["E006"]
    assert "from scheduling.defaults import *" in said()["E006"]
    assert defaults.RUN_LEASE


def test_hints_must_go_where_celery_reads(settings: Settings) -> None:
    settings.REDIS_URL = "redis://elsewhere/0"
    assert "Set REDIS_URL to the value of CELERY_BROKER_URL" in said()["E010"]


def test_an_app_that_is_missing_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = apps.get_app_config("scheduling")
    monkeypatch.setattr(apps, "is_installed", lambda name: name != "django_celery_results")
    with pytest.raises(ImproperlyConfigured, match="but not 'django_celery_results': add it"):
        config.import_models()


def test_beat_runs_no_scheduler_that_knows_nothing_of_the_ledger() -> None:
    ours: Any = current_app.Beat
    assert issubclass(ours, Beat)
    ours(quiet=True)
    with pytest.raises(ClickException, match="start it without -S"):
        ours(scheduler="django_celery_beat.schedulers:DatabaseScheduler")
    with pytest.raises(ClickException, match="start it without -S"):
        ours(scheduler_cls="celery.beat:PersistentScheduler")


def test_migrate_ends_before_it_changes_anything(settings: Settings) -> None:
    settings.USE_TZ = False
    answer = called("check")
    assert answer.code == 1
    assert "USE_TZ" in answer.err
