"""Everything behind a PgBouncer that pools transactions, with the settings that it comes with."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from scheduling.jobs import enqueue_many
from scheduling.models import Run, State
from scheduling.runs.enqueueing import Call
from tests.jobs.tasks import add
from tests.scheduling.ledger import interval, runs_of, schedule
from tests.system.processes import System
from tests.waiting import wait_for

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")

SETTINGS = """
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = plain
auth_file = {directory}/users
pool_mode = transaction
default_pool_size = {sessions}
"""


@pytest.fixture
def pooled(service_env: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """The address of this test's database behind a PgBouncer."""
    given = urlsplit(service_env["DATABASE_URL"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        own_port = probe.getsockname()[1]
    directory = tmp_path / "pgbouncer"
    directory.mkdir()
    text = SETTINGS.format(
        host=given.hostname, port=given.port, own_port=own_port, directory=directory, sessions=5
    )
    (directory / "pgbouncer.ini").write_text(text)
    (directory / "users").write_text(f'"{given.username}" "{given.password or ""}"\n')
    place = Path(f"/tmp/truebeat-pgbouncer-{own_port}")  # noqa: S108 (readable to the pooler's user)
    shutil.copytree(directory, place)
    (place / "pgbouncer.ini").write_text(text.replace(str(directory), str(place)))
    command = [*(NOBODY if os.geteuid() == 0 else ()), str(PGBOUNCER), str(place / "pgbouncer.ini")]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    address = given._replace(netloc=given.netloc.replace(f":{given.port}", f":{own_port}"))
    url = urlunsplit(address)
    try:
        wait_for(lambda: _answers(url), message=(directory / "log").read_text())
        yield url
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(place)


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=1).close()
    except psycopg.Error:
        return False
    return True


def test_schedules_and_runs_go_on_behind_it(system: System, pooled: str) -> None:
    system.env["DATABASE_URL"] = pooled
    row = schedule(interval=interval(1, "seconds"))
    beats = [system.beat(), system.beat()]
    workers = [system.worker(), system.worker()]
    enqueue_many(add, (Call((number, 1)) for number in range(300)))
    wait_for(
        lambda: Run.objects.filter(state=State.SUCCEEDED, origin="adhoc").count() == 300, timeout=60
    )
    wait_for(lambda: sum(run.state == State.SUCCEEDED for run in runs_of(row)) >= 3, timeout=30)
    assert not Run.objects.exclude(errors=[]).exists()
    for process in (*beats, *workers):
        assert process.said("pooler_found")
        for words in ("already exists", "does not exist", "tick_failed", "Traceback"):
            assert not process.said(words), process.output()


def test_no_setting_of_beats_session_reaches_another_client(system: System, pooled: str) -> None:
    system.env["DATABASE_URL"] = pooled
    schedule(interval=interval(1, "seconds"))
    system.beat()
    wait_for(lambda: Run.objects.count() >= 2, timeout=30)
    with psycopg.connect(pooled, autocommit=True) as other:
        for _ in range(20):
            found = other.execute(
                "SELECT current_setting('lock_timeout'), current_setting('enable_seqscan')"
            ).fetchone()
            assert found == ("0", "on")
