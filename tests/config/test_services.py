"""The plugin that gives the tests their services, seen from outside, in suites of one test file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import WaitFor

ROOT = Path(__file__).resolve().parents[2]
SUITE = """
import os
import pytest
from django.db import connection

@pytest.mark.django_db
@pytest.mark.parametrize("number", range(6))
def test_where_it_runs(number, redis_client):
    redis_client.set("mine", os.environ["PYTEST_XDIST_WORKER"])
    with open(os.environ["PLACES"], "a") as places:
        database, redis = connection.settings_dict, os.environ["REDIS_URL"]
        places.write(f"{database['PORT']}/{database['NAME']} {redis}\\n")
"""

LONG_SUITE = """
import os
import time

def test_that_takes_long():
    with open(os.environ["PLACES"], "a") as places:
        places.write(os.environ["PYTEST_XDIST_WORKER"])
    time.sleep(60)
"""


def start_suite(place: Path, suite: str = SUITE) -> subprocess.Popen[bytes]:
    place.mkdir()
    (place / "tmp").mkdir()
    (place / "test_suite.py").write_text(suite)
    environment = {
        "PATH": os.environ["PATH"],
        "TMPDIR": str(place / "tmp"),
        "PLACES": str(place / "places"),
    }
    options = (
        f"-n 2 --dist each -p no:cacheprovider --basetemp {place}/base -c {ROOT}/pyproject.toml"
    )
    command = [sys.executable, "-m", "pytest", *options.split(), "-p", "tests.conftest"]
    return subprocess.Popen([*command, place / "test_suite.py"], cwd=ROOT, env=environment)


def test_two_suites_at_once_and_their_workers_share_no_database_and_leave_nothing(
    tmp_path: Path,
) -> None:
    places = [tmp_path / "first", tmp_path / "second"]
    suites = [start_suite(place) for place in places]

    assert [suite.wait(120) for suite in suites] == [0, 0]
    lines = [line for place in places for line in (place / "places").read_text().splitlines()]
    assert len(lines) == 24
    assert len({line.split()[0] for line in lines}) == 4
    assert len({line.split()[1] for line in lines}) == 4
    assert [list((place / "tmp").iterdir()) for place in places] == [[], []]


def test_a_suite_that_is_told_to_end_leaves_nothing(tmp_path: Path, wait_for: WaitFor) -> None:
    suite = start_suite(tmp_path / "a", LONG_SUITE)
    wait_for((tmp_path / "a" / "places").exists, timeout=60)
    suite.terminate()
    assert suite.wait(60) == pytest.ExitCode.INTERRUPTED
    assert list((tmp_path / "a" / "tmp").iterdir()) == []


def test_it_starts_nothing_to_show_its_help() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "pytest", "--help"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": "/nowhere"},
        capture_output=True,
        text=True,
    )

    assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://:pw@127.0.0.1:6379/0", "redis://:pw@127.0.0.1:6379/3"),
        ("redis://127.0.0.1:6379", "redis://127.0.0.1:6379/3"),
        ("rediss://user:pw@redis.example/5", "rediss://user:pw@redis.example/8"),
    ],
)
def test_a_worker_counts_its_redis_database_from_the_named_one(url: str, expected: str) -> None:
    from tests.services import redis_database

    assert redis_database(url, 3) == expected
