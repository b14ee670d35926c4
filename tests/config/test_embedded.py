"""The embedded servers, as tests and `make up` rely on them."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from config.embedded import (
    EmbeddedError,
    PostgresServer,
    RedisServer,
    postgres_server,
    redis_server,
    server,
    start_postgres,
    start_redis,
)
from tests.waiting import WaitFor, is_alive

ROOT = Path(__file__).resolve().parents[2]
as_root_only = pytest.mark.skipif(os.geteuid() != 0, reason="is about root")

START_BOTH_AND_SLEEP = """
import sys, time
from pathlib import Path
from config.embedded import start_postgres, start_redis
place = Path(sys.argv[1])
print(start_postgres(place / "p").pid, start_redis(place / "r").pid, flush=True)
time.sleep(600)
"""
START_BOTH_AND_STOP = """
import sys
from pathlib import Path
from config.embedded import start_postgres, start_redis
place = Path(sys.argv[1])
with start_postgres(place / "p"), start_redis(place / "r"):
    pass
"""


class TestPostgres:
    def test_a_kill_loses_nothing_that_was_committed(self, own_postgres: PostgresServer) -> None:
        with psycopg.connect(own_postgres.url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
        before = own_postgres.url

        own_postgres.kill()
        own_postgres.start()

        assert own_postgres.url == before
        with psycopg.connect(own_postgres.url) as connection:
            assert connection.execute("SELECT one FROM kept").fetchone() == (1,)

    def test_a_restart_ends_sessions_and_keeps_the_address(
        self, own_postgres: PostgresServer
    ) -> None:
        connection = psycopg.connect(own_postgres.url)
        before = own_postgres.pid, own_postgres.url

        own_postgres.restart()

        assert own_postgres.pid != before[0]
        assert own_postgres.url == before[1]
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
        connection.close()

    def test_it_asks_for_its_password(self, own_postgres: PostgresServer) -> None:
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(own_postgres.url.replace(":" + _password(own_postgres.url), ""))

    def test_a_second_one_on_the_same_data_is_refused(
        self, own_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server, "LOCK_TIMEOUT", 0.1)

        with pytest.raises(EmbeddedError, match=rf"in use by another.*{own_postgres.pid}"):
            start_postgres(own_postgres.data_dir)

    def test_it_starts_over_when_making_the_data_was_interrupted(self, tmp_path: Path) -> None:
        half_made = tmp_path / "data.new"
        half_made.mkdir()
        (half_made / "PG_VERSION").write_text("18")

        with start_postgres(tmp_path, durable=False) as started:
            psycopg.connect(started.url).close()
        shutil.rmtree(tmp_path / "data")

    def test_it_needs_no_more_path_than_the_file_system_allows(self, tmp_path: Path) -> None:
        deep = tmp_path / ("d" * 100) / ("e" * 100)

        with start_postgres(deep, durable=False) as started:
            psycopg.connect(started.url).close()
        shutil.rmtree(deep)

    @as_root_only
    @pytest.mark.parametrize("way", postgres_server.DISGUISES, ids=lambda way: str(way.prefix[0]))
    def test_root_runs_it_in_a_private_directory(
        self, way: postgres_server.Disguise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tmp_path.chmod(0o700)
        monkeypatch.setattr(postgres_server, "DISGUISES", [way])
        try:
            started = start_postgres(tmp_path / "data", durable=False)
        except EmbeddedError as error:
            pytest.skip(str(error))

        with started:
            psycopg.connect(started.url).close()
        assert (tmp_path / "data" / "data").stat().st_uid == way.owner
        assert tmp_path.stat().st_mode & 0o777 == 0o700
        shutil.rmtree(tmp_path / "data")

    @as_root_only
    def test_it_says_what_to_do_where_root_has_no_way(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(postgres_server, "DISGUISES", [])

        with pytest.raises(EmbeddedError, match="Be an ordinary user, or set DATABASE_URL"):
            start_postgres(tmp_path)


class TestRedis:
    def test_a_kill_empties_it_and_it_comes_back_at_the_same_address(
        self, own_redis: RedisServer
    ) -> None:
        with redis.Redis.from_url(own_redis.url) as client:
            client.set("hint", 1)
            before = own_redis.url

            own_redis.kill()
            own_redis.start()

            assert own_redis.url == before
            assert client.get("hint") is None

    def test_a_durable_one_remembers(self, tmp_path: Path) -> None:
        with start_redis(tmp_path) as first, redis.Redis.from_url(first.url) as client:
            client.set("hint", "here")

        with start_redis(tmp_path) as second, redis.Redis.from_url(second.url) as client:
            assert client.get("hint") == b"here"

    def test_its_password_is_needed_and_not_in_the_process_list(
        self, own_redis: RedisServer
    ) -> None:
        assert _password(own_redis.url) not in " ".join(psutil.Process(own_redis.pid).cmdline())
        with (
            redis.Redis(port=own_redis.port, retry=Retry(NoBackoff(), 0)) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()

    def test_a_stopped_process_is_ended_too(self, own_redis: RedisServer) -> None:
        process = psutil.Process(own_redis.pid)
        os.kill(own_redis.pid, signal.SIGSTOP)

        own_redis.stop()

        assert not is_alive(process)

    def test_a_given_port_is_waited_for(self, tmp_path: Path, own_redis: RedisServer) -> None:
        threading.Timer(0.5, own_redis.stop).start()

        with start_redis(tmp_path, port=own_redis.port, durable=False) as second:
            assert second.port == own_redis.port

    def test_a_chosen_port_that_is_taken_is_given_up_for_another(
        self, tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ports = iter([own_redis.port, server.free_port()])
        monkeypatch.setattr(server, "free_port", lambda: next(ports))

        with start_redis(tmp_path, durable=False) as second:
            assert second.port != own_redis.port

    def test_a_binary_that_is_too_old_is_passed_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = tmp_path / "redis-server"
        old.write_text("#!/bin/sh\necho Redis server v=5.0.7 sha=0 bits=64\n")
        old.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

        assert redis_server.find_binary.__wrapped__() != old

    def test_a_failed_start_says_what_the_server_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(RedisServer, "_configuration", lambda _: b"no-such-setting 1\n")

        with pytest.raises(EmbeddedError, match="no-such-setting"):
            start_redis(tmp_path)


class TestEnd:
    def test_servers_end_with_the_process_that_started_them_even_by_kill_9(
        self, tmp_path: Path, wait_for: WaitFor
    ) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", START_BOTH_AND_SLEEP, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        ) as starter:
            assert starter.stdout is not None
            servers = [psutil.Process(int(pid)) for pid in starter.stdout.readline().split()]
            family = [*servers, *servers[0].children()]
            assert len(family) > 3

            starter.kill()

            wait_for(lambda: not any(map(is_alive, family)), message="the servers end")
        shutil.rmtree(tmp_path / "p")

    def test_the_thread_that_started_a_server_may_end_before_it(
        self, tmp_path: Path, wait_for: WaitFor
    ) -> None:
        started: list[RedisServer] = []
        thread = threading.Thread(
            target=lambda: started.append(start_redis(tmp_path, durable=False))
        )
        thread.start()
        thread.join()

        with started[0], redis.Redis.from_url(started[0].url) as client:
            assert client.ping()

    def test_where_the_kernel_does_not_end_them_a_shell_does(
        self, tmp_path: Path, wait_for: WaitFor
    ) -> None:
        polling = START_BOTH_AND_SLEEP.replace(
            "place =", "from config.embedded import server; server._prctl = None\nplace ="
        )
        with subprocess.Popen(
            [sys.executable, "-c", polling, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        ) as starter:
            assert starter.stdout is not None
            servers = [psutil.Process(int(pid)) for pid in starter.stdout.readline().split()]

            starter.kill()
            starter.wait()

            wait_for(lambda: not any(map(is_alive, servers)), message="the servers end")
        shutil.rmtree(tmp_path / "p")


@as_root_only
class TestOrdinaryUser:
    @pytest.mark.parametrize(
        "uid", [pytest.param(65534, id="named"), pytest.param(54321, id="nameless")]
    )
    def test_it_needs_no_privilege(self, uid: int) -> None:
        as_them = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", sys.executable]
        same = "import sys, config.embedded.server; print(sys.version, end='')"
        seen = subprocess.run([*as_them, "-B", "-c", same], cwd=ROOT, capture_output=True)
        if (
            seen.stdout.decode() != sys.version
        ):  # a Python under /root may even start with another's library
            pytest.skip("the checkout or the Python is not readable to others")
        place = Path(f"/tmp/truebeat-{uid}-{os.getpid()}")  # noqa: S108 - pytest's own is private
        place.mkdir(mode=0o700)
        os.chown(place, uid, uid)
        try:
            done = subprocess.run(
                [*as_them, "-B", "-c", START_BOTH_AND_STOP, str(place)],
                cwd=ROOT,
                capture_output=True,
                text=True,
            )
        finally:
            shutil.rmtree(place)

        if "Be an ordinary user" in done.stderr:
            pytest.skip("user namespaces are barred")
        assert done.returncode == 0, done.stderr


def _password(url: str) -> str:
    return url.split("@")[0].rpartition(":")[2]
