"""The environment of every bench: a database and a Redis database of its own."""

import argparse
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psutil
import psycopg
import redis
from psycopg import sql

from config.embedded.processes import ROOT

REDIS_DATABASE = 9
QUEUE = "celery"
LANES = [QUEUE, *(f"{QUEUE}\x06\x16{priority}" for priority in (3, 6, 9))]

EMPTY = """
TRUNCATE scheduling_run, scheduling_plan, scheduling_policy, django_celery_results_taskresult,
    django_celery_beat_periodictask, django_celery_beat_periodictasks,
    django_celery_beat_intervalschedule, django_celery_beat_crontabschedule,
    django_celery_beat_clockedschedule RESTART IDENTITY CASCADE
"""


class BenchError(Exception):
    """A bench cannot be run; the message says why."""


@dataclass
class Testbed:
    """The services of this run, and the options it was asked with."""

    options: argparse.Namespace
    env: dict[str, str]
    ledger: "psycopg.Connection[tuple[Any, ...]]"
    redis: "redis.Redis"
    clock_ahead: float = field(init=False)  # seconds of Postgres's clock over this process's
    postmaster: int = field(init=False)  # Postgres's first process; 0 if it runs on another host

    def __post_init__(self) -> None:
        self.postmaster = _postmaster(self.ledger)
        self.clock_ahead = min((self._clock_difference() for _ in range(9)), key=abs)

    def _clock_difference(self) -> float:
        asked = time.time()
        answer = float(self.value("SELECT extract(epoch FROM clock_timestamp())"))
        return answer - (asked + time.time()) / 2

    def now(self) -> float:
        """Return Postgres's clock, in seconds since 1970, without asking it."""
        return time.time() + self.clock_ahead

    def run(self, query: str, *values: object) -> None:
        self.ledger.execute(query.encode(), values or None)

    def run_named(self, query: str, values: Mapping[str, object]) -> None:
        self.ledger.execute(query.encode(), values)

    def value(self, query: str, *values: object) -> Any:
        row = self.ledger.execute(query.encode(), values or None).fetchone()
        return row[0] if row else None

    def clear(self) -> None:
        """Empty the tables and Redis."""
        self.run(EMPTY)
        self.redis.flushdb()

    def settle(self) -> None:
        """Vacuum and analyse as autovacuum would some time after a load, and write it to disk."""
        self.run("VACUUM ANALYZE")
        self.run("CHECKPOINT")

    def hints(self) -> int:
        """Return how many messages lie in the default queue, at all priorities."""
        pipeline = self.redis.pipeline(transaction=False)
        for lane in LANES:
            pipeline.llen(lane)
        return sum(pipeline.execute())

    @contextmanager
    def without_triggers(self, off: bool = True) -> Iterator[None]:
        """Have django-celery-beat's table as django-celery-beat alone would, inside the block."""
        table = "django_celery_beat_periodictask"
        if off:
            self.run(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        try:
            yield
        finally:
            self.run(f"ALTER TABLE {table} ENABLE TRIGGER USER")


@contextmanager
def prepared(options: argparse.Namespace) -> Iterator[Testbed]:
    """Make a database beside the one of DATABASE_URL, migrate it, and drop it afterwards.

    Other data of these services stay as they are: a bench that is pointed at real services by
    mistake costs them only time.
    """
    given = urlsplit(_required("DATABASE_URL"))
    name = f"truebeat_bench_{os.getpid()}"
    redis_url = urlsplit(_required("REDIS_URL"))._replace(path=f"/{REDIS_DATABASE}").geturl()
    leftovers = tempfile.TemporaryDirectory(prefix="truebeat-bench-")  # of killed processes
    env = os.environ | {
        "TMPDIR": leftovers.name,
        "DATABASE_URL": urlunsplit(given._replace(path=f"/{name}")),
        "REDIS_URL": redis_url,
        "DJANGO_SETTINGS_MODULE": "bench.settings",
        "LOG_LEVEL": "WARNING",
        "DEBUG": "0",
        "SECRET_KEY": secrets.token_hex(),
        "ALLOWED_HOSTS": "127.0.0.1",
    }
    with (
        leftovers,
        _database(given.geturl(), name),
        redis.Redis.from_url(redis_url) as client,
        psycopg.connect(env["DATABASE_URL"], autocommit=True) as ledger,
    ):
        if client.dbsize():
            raise BenchError(f"Redis database {REDIS_DATABASE} is not empty: it is not a bench's.")
        command = [sys.executable, "manage.py", "migrate", "--noinput", "--verbosity", "0"]
        subprocess.run(command, env=env, cwd=ROOT, check=True)
        try:
            yield Testbed(options, env, ledger, client)
        finally:
            client.flushdb()


def _postmaster(ledger: "psycopg.Connection[tuple[Any, ...]]") -> int:
    session = ledger.info.backend_pid
    with suppress(psutil.Error):
        if psutil.Process(session).name().startswith("postgres"):
            return psutil.Process(session).ppid()
    return 0


def _required(name: str) -> str:
    if name not in os.environ:
        raise BenchError(f"{name} is not set: `make bench` starts throwaway services and sets it.")
    return os.environ[name]


@contextmanager
def _database(url: str, name: str) -> Iterator[None]:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield
        finally:
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            connection.execute(drop)
