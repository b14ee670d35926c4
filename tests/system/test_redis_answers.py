"""No process ends because a Redis answers errors for a while: real processes, a real Redis."""

import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from config.embedded import RedisServer
from scheduling import clock
from scheduling.jobs import enqueue
from scheduling.models import Run, State
from tests.jobs import tasks
from tests.system.processes import System
from tests.waiting import wait_for

LASTS = timedelta(seconds=3)


def succeeded(run_id: Any) -> bool:
    return Run.objects.get(pk=run_id).state == State.SUCCEEDED


@pytest.fixture
def client(own_redis: RedisServer, system: System) -> Iterator[redis.Redis]:
    system.env["REDIS_URL"] = own_redis.url
    with redis.Redis.from_url(own_redis.url, socket_timeout=5) as one:
        yield one


class States:
    """The states of a Redis in which it answers errors: to begin each, and to end it."""

    def __init__(self, client: redis.Redis, password: str) -> None:
        self._client: Any = client
        self._place = str(self._client.config_get("dir")["dir"])
        self._password = password
        self.all: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
            "READONLY": (self._follow_nobody, self._lead),
            "OOM": (self._with(maxmemory="1"), self._with(maxmemory="0")),
            "NOREPLICAS": (
                self._with(min_replicas_to_write="1"),
                self._with(min_replicas_to_write="0"),
            ),
            "MISCONF": (
                self._fail_to_save,
                self._with(save="", dir=self._place, stop_writes_on_bgsave_error="no"),
            ),
            "MASTERDOWN": (self._know_nothing, self._lead),
            "max number of clients": (self._turn_away, self._with(maxclients="1000")),
            "WRONGPASS": (self._rotate, self._with(requirepass=password)),
        }

    def _with(self, **settings: str) -> Callable[[], None]:
        def act() -> None:
            for name, value in settings.items():
                self._client.config_set(name.replace("_", "-"), value)

        return act

    def _follow_nobody(self) -> None:
        self._client.execute_command("REPLICAOF", "127.0.0.1", "1")

    def _lead(self) -> None:
        self._client.execute_command("REPLICAOF", "NO", "ONE")

    def _fail_to_save(self) -> None:
        self._with(dir="/proc", save="3600 1")()
        self._client.bgsave()
        wait_for(lambda: self._client.info("persistence")["rdb_last_bgsave_status"] == "err")

    def _know_nothing(self) -> None:
        self._with(replica_serve_stale_data="no")()
        self._follow_nobody()

    def _turn_away(self) -> None:
        self._with(maxclients="1")()
        self._client.client_kill_filter(skipme=True)

    def _rotate(self) -> None:
        self._with(requirepass="another")()
        self._client.client_kill_filter(skipme=True)


def test_nothing_ends_for_an_answer_of_redis_that_passes(
    system: System, evidence: Path, client: redis.Redis, own_redis: RedisServer
) -> None:
    states = States(client, urlsplit(own_redis.url).password or "")
    beat, worker = system.beat(), system.ready_worker(2)
    long = enqueue(tasks.sleep, (str(evidence), 60)).id
    wait_for(lambda: "start 1" in evidence.read_text(), timeout=20)
    for name, (begin, end) in states.all.items():
        begin()
        run_id = enqueue(tasks.write, (str(evidence), name)).id
        begun = clock.now()
        wait_for(lambda since=begun: clock.now() > since + LASTS, timeout=10)  # type: ignore[misc]
        if name == "READONLY":
            late = system.worker(1)  # begins in the midst of it
            late.wait_until_said(" ready.")
        end()
        wait_for(lambda run=run_id: succeeded(run), timeout=10, message=name)  # type: ignore[misc]
        assert not beat.ended(), name
        assert not worker.ended(), name
    assert not late.ended()
    assert worker.said("redis_refuses")
    run = Run.objects.get(pk=long)
    assert (run.state, run.attempt) == (State.RUNNING, 1)
    assert late.stop() == 0
    for service in (beat, worker):
        service.signal(signal.SIGKILL)
