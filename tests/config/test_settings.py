"""A service with an incomplete environment prints one line, and ends."""

import os
import shlex
import subprocess
import sys

import pytest

from config.embedded.processes import ROOT

COMPLETE = {
    "SECRET_KEY": "long-and-random-" * 4,
    "DATABASE_URL": "postgres://unknown@127.0.0.1:1/none",
    "REDIS_URL": "redis://127.0.0.1:1/0",
    "ALLOWED_HOSTS": "truebeat.example.org",
}


def start(**changes: str) -> subprocess.CompletedProcess[str]:
    """Read the settings in a process of their own; an empty value counts as not set."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "manage.py", "diffsettings"],
        cwd=ROOT, env={**keep, **COMPLETE, **changes}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_complete_environment_is_enough() -> None:
    process = start()
    assert process.returncode == 0, process.stderr
    assert "DEBUG = False" not in process.stdout  # Django's own default


def test_a_database_url_may_name_the_directory_of_a_socket_as_libpq_does() -> None:
    process = start(DATABASE_URL="postgres://me@%2Fvar%2Frun%2FPostgres/name?connect_timeout=3")
    assert "'HOST': '/var/run/Postgres'" in process.stdout, process.stderr
    assert "'NAME': 'name'" in process.stdout


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"SECRET_KEY": ""}, "SECRET_KEY is not set"),
        ({"SECRET_KEY": "insecure-development-key"}, "SECRET_KEY is a development default"),
        ({"SECRET_KEY": "x"}, "SECRET_KEY can be guessed"),
        ({"SECRET_KEY": "abcdefghij" * 4 + "123456789"}, "needs 50 characters or more"),
        ({"SECRET_KEY": "abcd" * 20}, "5 different ones"),
        ({"SECRET_KEY": "django-insecure-" + "abcdefghij" * 5}, "no prefix django-insecure-"),
        ({"SECRET_KEY": "x"}, "secrets.token_urlsafe(50)"),
        ({"DATABASE_URL": ""}, "DATABASE_URL is not set"),
        ({"DATABASE_URL": "postgres://truebeat@127.0.0.1:5432/truebeat"}, "development default"),
        ({"DATABASE_URL": "sqlite:///db"}, "DATABASE_URL must begin with postgres://"),
        ({"REDIS_URL": ""}, "REDIS_URL is not set"),
        ({"REDIS_URL": "amqp://localhost"}, "REDIS_URL must begin with redis://"),
        ({"REDIS_URL": "redis://localhost/one"}, "REDIS_URL must have a number as its path"),
        ({"TIME_ZONE": "Europe/Atlantis"}, "TIME_ZONE 'Europe/Atlantis' does not exist"),
    ],
)
def test_what_is_missing_or_wrong_is_one_line(changes: dict[str, str], said: str) -> None:
    process = start(**changes)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert line.startswith("truebeat: ")
    assert said in line


def test_the_line_that_makes_a_key_makes_one_that_is_taken() -> None:
    line = start(SECRET_KEY="x").stderr.partition("Make one: ")[2]
    _, python, option, script = ["", *shlex.split(line)]
    assert (python, option) == ("python", "-c")
    key = subprocess.run(
        [sys.executable, option, script], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert start(SECRET_KEY=key).returncode == 0


def test_development_needs_nothing() -> None:
    process = start(DEBUG="1", SECRET_KEY="", DATABASE_URL="", REDIS_URL="")
    assert process.returncode == 0, process.stderr
