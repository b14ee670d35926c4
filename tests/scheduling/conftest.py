"""Fixtures for the tests of scheduling."""

from collections.abc import Iterator

import pytest
from django.db import connection
from django_celery_beat.models import PeriodicTask

from chaos.network import Proxy
from scheduling.postgres import identity


@pytest.fixture(autouse=True)
def known_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tests without a database make hints, too: each names its ledger."""
    monkeypatch.setattr(identity, "_known", identity._known or "a-ledger-of-tests")


@pytest.fixture
def bare_runs(db: None) -> None:
    """Empty the table of runs of the dead rows of earlier tests too, which Postgres's plans count.

    TRUNCATE gives it new files; those rows had been rolled back, and nothing had vacuumed them.
    """
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE scheduling_run")


@pytest.fixture
def bare_schedules(db: None) -> None:
    """Delete the engine's own schedules, of the migrations: a beat fires them when they are due."""
    PeriodicTask.objects.all().delete()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A way to this test's database that can be cut; the connection uses it."""
    settings, original = connection.settings_dict, dict(connection.settings_dict)
    connection.ensure_connection()
    info = connection.connection.info
    with Proxy("127.0.0.1", info.port) as way:
        connection.close()
        settings.update(HOST="127.0.0.1", PORT=str(way.port))
        try:
            yield way
        finally:
            connection.close()
            settings.update(original)
