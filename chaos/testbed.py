"""The environment: throwaway Postgres and Redis, beats and workers, and their supervisor."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import psutil
import psycopg
import redis

from chaos import evidence
from chaos.network import Proxy
from chaos.plan import BEATS, THREADED, WORKERS
from chaos.story import Step
from config.embedded import PostgresServer, RedisServer, start_postgres, start_redis
from config.embedded.processes import ROOT, ModuleProcess

QUEUE = "celery"
LANES = [QUEUE, *(f"{QUEUE}\x06\x16{priority}" for priority in (3, 6, 9))]


class SupervisedProcess(ModuleProcess):
    """A beat or a worker that its supervisor starts again after each end."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        log: Path,
        ways: Mapping[str, Proxy],
    ) -> None:
        super().__init__(name, command, env, log)
        self.ways = ways  # to postgres and to redis
        self.skew = 0  # seconds by which its clock is off
        self.lock = threading.RLock()  # held while a fault works on it
        self._back_at = 0.0
        self._expected = True

    def start(self, **env: str) -> Self:
        self._expected = False
        urls = {"DATABASE_URL": self.ways["postgres"].url, "REDIS_URL": self.ways["redis"].url}
        return super().start(**urls, **skewed(self.skew), **env)

    def expect_end(self, back_in: float) -> None:
        """Note that a fault is about to end it, and that it starts again in `back_in` seconds."""
        self._expected, self._back_at = True, time.monotonic() + back_in

    def children(self) -> list[int]:
        with suppress(psutil.Error):
            return [child.pid for child in psutil.Process(self.pid).children()]
        return []

    def restart_if_ended(self) -> bool:
        """Start it if it has ended and its time has come; return whether its end was a surprise."""
        if not self.ended():
            return False
        if self._expected and time.monotonic() < self._back_at:
            return False
        surprise = not self._expected
        self.start()
        return surprise

    def end(self) -> None:
        self.signal(signal.SIGCONT)
        self.kill()


class Testbed:
    """The services of one seed, and questions to them from outside."""

    def __init__(self, postgres: PostgresServer, redis_server: RedisServer, place: Path) -> None:
        self.postgres, self.redis_server, self.place = postgres, redis_server, place
        self.redis = redis.Redis.from_url(redis_server.url, socket_timeout=2)
        self.servers = {name: threading.RLock() for name in ("postgres", "redis", "clock")}
        self.beats: list[SupervisedProcess] = []
        self.workers: list[SupervisedProcess] = []
        self.surprises: list[str] = []
        self.steps: list[Step] = []  # of the ledger's clock
        self._over = threading.Event()

    def connect(self) -> "psycopg.Connection[tuple[object, ...]]":
        return psycopg.connect(self.postgres.url, autocommit=True, connect_timeout=2)

    def now(self) -> datetime:
        """Return the time of the ledger's clock."""
        ahead = sum(step.size for step in self.steps)
        return datetime.now(UTC) + timedelta(seconds=ahead)

    def step_clock(self, size: float) -> bool:
        """Step the ledger's clock by `size` seconds; return whether it can be stepped."""
        if not isinstance(self.postgres, SteppedPostgres) or faketime() is None:
            return False
        with self.servers["clock"]:
            ahead = sum(step.size for step in self.steps) + size
            began = time.time()
            self.postgres.step(ahead)
            self.steps.append(Step(began, time.time(), size))
        return True

    def ways(self, stack: ExitStack) -> dict[str, Proxy]:
        """Return ways to the servers that one service has for itself, open until `stack` closes."""
        servers = {"postgres": self.postgres, "redis": self.redis_server}
        return {
            name: stack.enter_context(Proxy.before(server.url)) for name, server in servers.items()
        }

    @property
    def services(self) -> list[SupervisedProcess]:
        return [*self.beats, *self.workers]

    def supervise(self) -> None:
        """Start each process again after its end, until `end`; runs in a thread."""
        while not self._over.wait(0.1):
            for service in self.services:
                if not service.lock.acquire(blocking=False):
                    continue  # it is frozen just now
                try:
                    if service.restart_if_ended():
                        self.surprises.append(f"{service.name} at {time.time():.3f}")
                finally:
                    service.lock.release()

    def end(self) -> None:
        self._over.set()
        for service in self.services:
            service.end()


@contextmanager
def prepared(place: Path, services: Path, lease: float, *, stepped: bool) -> Iterator[Testbed]:
    """Start everything in `services`, migrated and listening; logs and evidence go to `place`.

    Only if it is to be `stepped` can the ledger's clock be stepped: that makes reading it slower.
    """
    (place / "evidence").mkdir(parents=True)
    (place / "logs").mkdir()
    leftovers = services / "tmp"  # of processes that are killed
    leftovers.mkdir()
    with ExitStack() as stack:
        postgres = stack.enter_context(_postgres(services / "postgres", stepped=stepped))
        redis_server = stack.enter_context(start_redis(services / "redis", durable=False))
        testbed = Testbed(postgres, redis_server, place)
        env = os.environ | variables(testbed, lease) | {"TMPDIR": str(leftovers)}
        migrate = [sys.executable, "manage.py", "migrate", "--noinput", "--verbosity", "0"]
        subprocess.run(migrate, env=env, cwd=ROOT, check=True)
        stack.callback(testbed.end)
        for number in range(BEATS):
            testbed.beats.append(_beat(number, env, place, testbed.ways(stack)))
        for number in range(WORKERS):
            testbed.workers.append(_worker(number, env, place, testbed.ways(stack)))
        yield testbed


@contextmanager
def _postgres(place: Path, *, stepped: bool) -> Iterator[PostgresServer]:
    if not stepped:
        with start_postgres(place, durable=False) as server:
            yield server
        return
    server = SteppedPostgres(place, durable=False)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def variables(testbed: Testbed, lease: float) -> dict[str, str]:
    """Return the variables of all processes of a testbed, this one's own among them."""
    return {
        "DATABASE_URL": testbed.postgres.url,
        "REDIS_URL": testbed.redis_server.url,
        "DJANGO_SETTINGS_MODULE": "chaos.settings",
        "TIME_ZONE": "UTC",
        "SECRET_KEY": "only-for-chaos-" + "0123456789" * 4,
        "RUN_LEASE_SECONDS": str(lease),
        "RETRY_BACKOFF_SECONDS": "0.5",
        "STUCK_AFTER_SECONDS": str(2 * lease),
        "CELERY_SKIP_CHECKS": "1",
        "PYTHONUNBUFFERED": "1",
        "PGOPTIONS": "",
        evidence.PLACE: str(testbed.place / "evidence"),
    }


Ways = Mapping[str, Proxy]


def _beat(number: int, env: Mapping[str, str], place: Path, ways: Ways) -> SupervisedProcess:
    name = f"beat{number}"
    command = ["celery", "-A", "config", "beat"]
    return SupervisedProcess(name, command, env, place / "logs" / f"{name}.log", ways)


def _worker(number: int, env: Mapping[str, str], place: Path, ways: Ways) -> SupervisedProcess:
    name = f"worker{number}"
    pool = ["--pool", "threads", "-c", "10"] if number == THREADED else ["-c", "6"]
    command = ["celery", "-A", "config", "worker", "-n", f"{name}@%h", *pool]
    env = {**env, evidence.PROCESS: name}
    return SupervisedProcess(name, command, env, place / "logs" / f"{name}.log", ways)


class SteppedPostgres(PostgresServer):
    """A PostgreSQL whose clock can be stepped; where libfaketime is not installed it cannot be."""

    def step(self, seconds: float) -> None:
        """Let its clock be `seconds` off from now on."""
        new = self._offset.with_suffix(".new")
        new.write_text(f"{seconds:+.3f}")
        new.chmod(0o644)
        new.rename(self._offset)

    @property
    def _offset(self) -> Path:
        return self.data_dir / "clock"

    def _command(self) -> Sequence[str]:
        library = faketime()
        if library is None:
            return super()._command()
        if not self._offset.exists():  # a step outlasts a restart
            self.step(0)
        # Read anew for each look at the clock: all sessions see the step at the same moment.
        variables = {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": self._offset,
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        command = list(super()._command())
        binary = len(self._disguise.prefix)
        named = [f"{name}={value}" for name, value in variables.items()]
        return [*command[:binary], "env", *named, *command[binary:]]


def skewed(seconds: int) -> dict[str, str]:
    """Return the variables of a process with a wrong clock; none if that is not possible."""
    library = faketime()
    if not seconds or library is None:
        return {}
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{seconds:+d}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def faketime() -> Path | None:
    """Return the library of the wheel libfaketime, which bends a process's clock; None without.

    Found without importing it: the package's Python face starts the process anew.
    """
    wheel = find_spec("libfaketime")
    if wheel is None or wheel.origin is None:
        return None
    library = Path(wheel.origin).parent / "vendor/libfaketime/src/libfaketime.so.1"
    return library if library.exists() else None
