"""Fixtures for every test; tests/services.py has started the services before this is read."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis
from aiosmtpd.controller import Controller
from pytest_django import Settings

from config.embedded import PostgresServer, RedisServer, start_postgres, start_redis
from config.embedded import free_port as any_free_port
from tests import slow
from tests.mail_server import MailServer
from tests.waiting import WaitFor
from tests.waiting import wait_for as wait


@pytest.hookimpl(tryfirst=True)  # before pytest applies `-m "not slow"`
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow.arrange(items)


@dataclass(frozen=True)
class SharedRedis:
    """The Redis of this run; `url` names the database that is this worker's alone."""

    url: str


@pytest.fixture(scope="session")
def redis_server() -> SharedRedis:
    return SharedRedis(os.environ["REDIS_URL"])


@pytest.fixture
def redis_client(redis_server: SharedRedis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushdb()
        yield client
        client.flushdb()


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis to kill, stop and start; empty after each start."""
    with (
        tempfile.TemporaryDirectory(prefix="truebeat-") as place,
        start_redis(Path(place) / "redis", durable=False) as server,
    ):
        yield server


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL to kill, stop and start; it keeps committed rows."""
    with (
        tempfile.TemporaryDirectory(prefix="truebeat-") as place,
        start_postgres(Path(place) / "postgres", durable=False) as server,
    ):
        yield server


@pytest.fixture
def service_env(django_db_setup: None, redis_server: SharedRedis, tmp_path: Path) -> dict[str, str]:
    """The environment for a beat, a worker or a command on this test's own databases."""
    from django.db import connection

    database = urlsplit(os.environ["DATABASE_URL"])
    database = database._replace(path=f"/{connection.settings_dict['NAME']}")
    return os.environ | {
        "DATABASE_URL": urlunsplit(database),
        "REDIS_URL": redis_server.url,
        "EMAIL_URL": f"filemail://{tmp_path}/mail",
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture(scope="session")
def wait_for() -> WaitFor:
    return wait


@pytest.fixture
def free_port() -> int:
    return any_free_port()


@pytest.fixture
def noon(db: None, settings: Settings) -> None:
    """Set TIME_ZONE to a zone in which it is noon: the day does not end during the test."""
    from scheduling import clock

    settings.TIME_ZONE = f"Etc/GMT{clock.now().hour - 12:+d}"


@pytest.fixture
def mail_settings(settings: Settings, free_port: int) -> int:
    """Send mail by SMTP to a port on which no server listens yet."""
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", free_port
    settings.EMAIL_HOST_USER = settings.EMAIL_HOST_PASSWORD = ""
    settings.EMAIL_TIMEOUT = 5
    return free_port


@pytest.fixture
def mail_server(mail_settings: int) -> Iterator[MailServer]:
    server = MailServer(mail_settings)
    controller = Controller(server, hostname="127.0.0.1", port=mail_settings)
    controller.start()
    try:
        yield server
    finally:
        controller.stop()
