"""Every way to Redis that REDIS_URL can name, with real processes."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from celery import current_app

from scheduling.broker import clients, doorbell
from scheduling.jobs import enqueue
from scheduling.models import Run, State
from scheduling.runs.hints import Broker, Lane
from tests.fronts import Front, make_certificates
from tests.jobs import tasks
from tests.system.processes import System
from tests.waiting import wait_for


@pytest.fixture
def front(redis_client: redis.Redis, system: System) -> Iterator[Front]:
    with Front(system.env["REDIS_URL"]) as way:
        yield way


def login_and_database(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[0], parts.path.strip("/")


@pytest.fixture(params=["rediss", "unix", "redis+socket"])
def address(request: pytest.FixtureRequest, front: Front, system: System, tmp_path: Path) -> str:
    """Another address of this test's Redis."""
    login, number = login_and_database(system.env["REDIS_URL"])
    if request.param == "rediss":
        certificates = make_certificates(tmp_path / "certificates")
        port = front.listen_with_tls(certificates)
        return f"rediss://{login}@localhost:{port}/{number}?ssl_ca_certs={certificates}/ca.pem"
    path = tmp_path / "redis.sock"
    front.listen_on(path)
    name = "virtual_host" if request.param == "redis+socket" else "db"
    return f"{request.param}://{login}@{path}?{name}={number}"


def test_all_processes_reach_redis_by_the_address_alone(
    system: System, evidence: Path, front: Front, address: str, settings: Any
) -> None:
    password = urlsplit(system.env["REDIS_URL"]).password or ""
    beat = system.beat(REDIS_URL=address)
    worker = system.ready_worker(1, REDIS_URL=address)
    run_id = enqueue(tasks.write, (str(evidence), "ran")).id
    wait_for(lambda: Run.objects.get(pk=run_id).state == State.SUCCEEDED, timeout=20)
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "celery", "-A", "config", "inspect", "stats"],
        env={**system.env, "REDIS_URL": address}, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert "1 node online" in told.stdout, told.stderr
    settings.REDIS_URL = address
    found = front.connections
    assert clients.client(socket_timeout=5).ping()
    assert Broker().lengths([Lane("celery", 6)]) == {Lane("celery", 6): 0}
    with doorbell._client.__wrapped__() as client:
        client.publish("test", "")
    assert front.connections >= found + 3
    for text in (told.stdout, beat.output(), worker.output()):
        assert password not in text
    for trouble in ("bell_not_heard", "bell_not_rung", "redis_away", "queues_not_seen"):
        assert not beat.said(trouble), trouble
        assert not worker.said(trouble), trouble


def test_a_certificate_of_an_unknown_ca_or_for_another_host_is_refused(
    system: System, front: Front, tmp_path: Path, settings: Any
) -> None:
    login, number = login_and_database(system.env["REDIS_URL"])
    certificates = make_certificates(tmp_path / "certificates")
    other = make_certificates(tmp_path / "other")
    port = front.listen_with_tls(certificates)
    ours, theirs = f"ssl_ca_certs={certificates}/ca.pem", f"ssl_ca_certs={other}/ca.pem"
    for host, query, works in (
        ("localhost", ours, True),
        ("127.0.0.1", ours, True),
        ("localhost", "", False),
        ("localhost", theirs, False),
        ("localhost.localdomain", ours, False),
        ("localhost", "ssl_cert_reqs=CERT_NONE", True),
        ("localhost", "ssl_cert_reqs=none", True),
    ):
        settings.REDIS_URL = f"rediss://{login}@{host}:{port}/{number}?{query}"
        client = clients.client(socket_timeout=5)
        with current_app.connection_for_write(settings.REDIS_URL) as connection:
            if works:
                assert client.ping()
                connection.connect()
                continue
            with pytest.raises(redis.ConnectionError):
                client.ping()
            with pytest.raises(connection.connection_errors):
                connection.connect()
