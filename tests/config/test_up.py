"""`make up` and its kin, run for real on a copy of the checkout under a private directory."""

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from config.embedded import RedisServer
from tests.waiting import WaitFor, is_alive

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = [sys.executable, "-m", "config.embedded"]


@pytest.fixture(scope="module")
def checkout() -> Iterator[Path]:
    """A copy as `git clone` makes it, which only its owner can read."""
    parent = Path("/tmp") / f"truebeat-checkout-{os.getpid()}"  # noqa: S108 - short enough to read
    parent.mkdir(mode=0o700)
    left_out = shutil.ignore_patterns(".git", ".venv", "var", "__pycache__", ".*_cache", "bench")
    shutil.copytree(ROOT, parent / "truebeat", ignore=left_out)
    yield parent / "truebeat"
    shutil.rmtree(parent)


@pytest.fixture
def environment(free_port: int) -> dict[str, str]:
    """No more than a login gives, and a port that is free."""
    return {"HOME": "/nowhere", "PATH": "/usr/bin:/bin", "PORT": str(free_port)}


@pytest.fixture
def up(
    checkout: Path, environment: dict[str, str], wait_for: WaitFor
) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        with (checkout / "up.log").open("wb") as log:
            process = subprocess.Popen(
                [*EMBEDDED, "up"], cwd=checkout, env=environment, stdout=log, stderr=log
            )
        started.append(process)
        wait_for(
            lambda: process.poll() is not None or _status(environment, "/healthz") == 200,
            timeout=60,
            message="/healthz answers",
        )
        return process

    yield start
    for process in started:
        process.terminate()
        process.wait(15)


def test_it_runs_everything_refuses_a_second_one_and_stops_cleanly(
    checkout: Path,
    environment: dict[str, str],
    up: Callable[[], subprocess.Popen[bytes]],
    wait_for: WaitFor,
) -> None:
    first = up()
    password = (checkout / "var" / "admin-password").read_text()
    address = f"http://127.0.0.1:{environment['PORT']}/admin/   user admin, password {password}"
    wait_for(lambda: address in (checkout / "up.log").read_text(), message="the greeting")
    said = (checkout / "up.log").read_text().partition(address)[0].splitlines()
    assert len(said) < 20
    assert [line.split()[0] for line in said[:4]] == [
        "Services", "Migrations", "Demo", "Starting"
    ]  # fmt: skip
    family = psutil.Process(first.pid).children(recursive=True)
    names = set()
    for process in family:
        with suppress(psutil.NoSuchProcess):  # a connection of Postgres that has just ended
            names.add(process.name())
    assert {"postgres", "redis-server", "gunicorn", "celery"} <= names
    assert _status(environment, "/static/admin/css/base.css") == 200
    second = subprocess.run(
        [*EMBEDDED, "up"], cwd=checkout, env=environment, capture_output=True, text=True
    )
    assert second.returncode == 1
    assert second.stderr == (
        f"truebeat: Truebeat runs here already: http://127.0.0.1:{environment['PORT']}/"
        f" (process {first.pid})\n"
    )

    asked = time.monotonic()
    first.send_signal(signal.SIGINT)

    assert first.wait(12) == 0
    assert time.monotonic() - asked < 10
    assert not [process for process in family if is_alive(process)]
    assert not (checkout / "var" / "up.env").exists()
    log = (checkout / "up.log").read_text()
    assert "SIGKILL" not in log
    assert "Traceback" not in log


def test_its_data_survives_a_kill_and_nothing_else_does(
    checkout: Path,
    environment: dict[str, str],
    up: Callable[[], subprocess.Popen[bytes]],
    wait_for: WaitFor,
) -> None:
    first = up()
    with psycopg.connect(_published(checkout)["DATABASE_URL"]) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept AS SELECT 1 AS one")
    family = psutil.Process(first.pid).children(recursive=True)

    first.kill()
    first.wait()

    wait_for(lambda: not any(map(is_alive, family)), timeout=12, message="everything ends")
    up()
    with psycopg.connect(_published(checkout)["DATABASE_URL"]) as connection:
        assert connection.execute("SELECT one FROM kept").fetchone() == (1,)
    assert "Demo data" not in (checkout / "up.log").read_text()


def test_a_command_uses_the_services_of_a_running_up_and_its_own_otherwise(
    checkout: Path, environment: dict[str, str], up: Callable[[], subprocess.Popen[bytes]]
) -> None:
    show = [*EMBEDDED, "run", "--", "sh", "-c", "echo $DATABASE_URL; exit 3"]
    alone = subprocess.run(show, cwd=checkout, env=environment, capture_output=True, text=True)
    up()
    beside = subprocess.run(show, cwd=checkout, env=environment, capture_output=True, text=True)

    assert (alone.returncode, beside.returncode) == (3, 3)
    assert beside.stdout.strip() == _published(checkout)["DATABASE_URL"]
    assert alone.stdout != beside.stdout


def test_throwaway_services_leave_nothing(tmp_path: Path) -> None:
    show = [*EMBEDDED, "run", "--throwaway", "--", "sh", "-c", "ls $TMPDIR; echo $REDIS_URL"]
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}

    shown = subprocess.run(show, cwd=ROOT, env=environment, capture_output=True, text=True)

    place, redis_url = shown.stdout.split()
    assert place.startswith("truebeat-")
    assert redis_url.startswith("redis://:")
    assert not list(tmp_path.iterdir())


def test_services_named_in_the_environment_are_used_instead(tmp_path: Path) -> None:
    environment = {
        "PATH": "/usr/bin:/bin",
        "TMPDIR": str(tmp_path),
        "DATABASE_URL": "postgres://db.example/truebeat",
        "REDIS_URL": "redis://redis.example/0",
    }
    show = [*EMBEDDED, "run", "--throwaway", "--", "sh", "-c", "echo $DATABASE_URL $REDIS_URL"]

    shown = subprocess.run(show, cwd=ROOT, env=environment, capture_output=True, text=True)

    assert shown.stdout == "postgres://db.example/truebeat redis://redis.example/0\n"


def test_a_taken_port_is_named_before_anything_starts(
    checkout: Path, environment: dict[str, str], own_redis: RedisServer
) -> None:
    port = str(own_redis.port)
    refused = subprocess.run(
        [*EMBEDDED, "up"],
        cwd=checkout,
        env=environment | {"PORT": port},
        capture_output=True,
        text=True,
    )

    assert refused.returncode == 1
    assert refused.stderr.startswith(f"truebeat: Port {port} is taken. Choose another: PORT=")


def _status(environment: dict[str, str], path: str) -> int | None:
    url = f"http://127.0.0.1:{environment['PORT']}{path}"
    with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return int(answer.status)
    return None


def _published(checkout: Path) -> dict[str, str]:
    lines = (checkout / "var" / "up.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)
