"""The main job, end to end: from a file of lifecycle ids to mails, although processes die."""

import csv
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from email import message_from_bytes
from pathlib import Path

import pytest
import redis
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Mailbox

from config.embedded.processes import ROOT
from notifications.dates import today
from notifications.models import Delivery, DeliveryState, Reminder
from notifications.tasks import sweep
from scheduling.jobs import enqueue
from scheduling.models import UNFINISHED, Run, State
from tests.system.processes import System
from tests.waiting import wait_for

REAL_FILE = ROOT.parent / "shared" / "data" / "lifecycle_ids.csv"


@pytest.fixture(autouse=True)
def sixty_days(transactional_db: None) -> None:
    """The lead time that migrations make, and that emptying the tables takes away."""
    Reminder.objects.get_or_create(days_before=60)


@pytest.fixture
def lifecycle_file(tmp_path: Path) -> Path:
    """The real file if it is there; else a file of the same shape."""
    if REAL_FILE.exists():
        return REAL_FILE
    path = tmp_path / "lifecycle_ids.csv"
    columns = "lcid,name,issued_on,expires_on,requester_email,requester_name"
    rows = [
        f"lc-{n},System {n},,{date(2026, 1, 1) + timedelta(days=n % 1500)},r{n}@example.org,R {n}"
        for n in range(7000)
    ]
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path


def expected_in(path: Path, day: date) -> set[str]:
    """Return the ids that expire in the 60 days from `day`, without the system under test."""
    with path.open(newline="", encoding="utf-8") as file:
        return {
            row["lcid"]
            for row in csv.DictReader(file)
            if 0 <= (date.fromisoformat(row["expires_on"]) - day).days <= 60
        }


def load(system: System, path: Path) -> None:
    subprocess.run(
        [sys.executable, "-W", "ignore", "manage.py", "import_lifecycle_ids", str(path)],
        cwd=ROOT, env=system.env, check=True, capture_output=True,
    )  # fmt: skip


def mails_in(mailbox: Path) -> Counter[str]:
    """Return how many mails of each Message-ID lie in a directory."""
    files = list(mailbox.glob("*.eml")) if mailbox.exists() else []
    return Counter(message_from_bytes(file.read_bytes())["Message-ID"] for file in files)


def sent_to() -> list[str]:
    sent = Delivery.objects.filter(sent_at__isnull=False)
    return [delivery.record_id for delivery in sent]


def all_final() -> bool:
    return Run.objects.exists() and not Run.objects.filter(state__in=UNFINISHED).exists()


def test_each_expiring_record_of_the_file_gets_one_delivery_and_one_mail(
    system: System, lifecycle_file: Path, tmp_path: Path
) -> None:
    day = today()  # said to the sweeps: midnight may come before they start
    expected = expected_in(lifecycle_file, day)
    assert expected
    load(system, lifecycle_file)
    system.beat(), system.beat()
    system.ready_worker(2), system.ready_worker(2)
    enqueue(sweep, (str(day),)), enqueue(sweep, (str(day),))
    wait_for(lambda: len(sent_to()) == len(expected) and all_final(), timeout=60)
    assert Counter(sent_to()) == Counter(expected)
    assert Delivery.objects.count() == len(expected)
    mails = mails_in(tmp_path / "mail")
    assert len(mails) == len(expected)
    assert set(mails.values()) == {1}


def test_with_kills_every_delivery_is_made_and_marked_once(
    system: System, lifecycle_file: Path, tmp_path: Path, redis_client: redis.Redis
) -> None:
    day = today()
    expected = expected_in(lifecycle_file, day)
    load(system, lifecycle_file)
    beat, worker = system.beat(), system.ready_worker(1)
    enqueue(sweep, (str(day),))
    wait_for(lambda: Delivery.objects.filter(sent_at__isnull=False).count() >= 5, timeout=30)
    worker.kill()
    beat.kill()
    redis_client.flushdb()  # this test process's database; others use the same server
    system.beat(), system.beat()
    second, _ = system.ready_worker(1), system.ready_worker(1)
    wait_for(lambda: len(sent_to()) >= min(15, len(expected)), timeout=30)
    second.kill()
    wait_for(lambda: len(sent_to()) == len(expected) and all_final(), timeout=60)
    assert Counter(sent_to()) == Counter(expected)
    mails = mails_in(tmp_path / "mail")
    assert len(mails) == len(expected)
    # A second mail of a delivery is explained by an attempt that was lost.
    repeated = Run.objects.filter(attempt__gt=1, task="notifications.tasks.deliver").count()
    assert sum(mails.values()) - len(mails) <= repeated
    assert not Run.objects.exclude(state=State.SUCCEEDED).exists()


@contextmanager
def smtp_server(directory: Path, port: int) -> Iterator[None]:
    controller = Controller(Mailbox(directory), hostname="127.0.0.1", port=port)
    controller.start()
    try:
        yield
    finally:
        controller.stop()


def test_mails_arrive_later_when_the_server_was_down_at_first(
    system: System, tmp_path: Path, free_port: int
) -> None:
    path = tmp_path / "few.csv"
    soon = today() + timedelta(days=10)
    rows = [f"lc-{n},System {n},,{soon},r{n}@example.org,R {n}" for n in range(5)]
    path.write_text("lcid,name,issued_on,expires_on,requester_email,requester_name\n"
                    + "\n".join(rows) + "\n")  # fmt: skip
    load(system, path)
    system.env["EMAIL_URL"] = f"smtp://127.0.0.1:{free_port}"
    system.beat()
    system.ready_worker(2)
    enqueue(sweep)
    delivering = Run.objects.filter(task="notifications.tasks.deliver")
    wait_for(lambda: delivering.filter(failures__gte=1).count() == 5, timeout=30)
    with smtp_server(tmp_path / "maildir", free_port):
        wait_for(lambda: delivering.filter(state=State.SUCCEEDED).count() == 5, timeout=30)
    assert len(list((tmp_path / "maildir" / "new").iterdir())) == 5
    for run in delivering:
        assert len(run.errors) == run.failures == run.attempt - 1
        assert "refused" in run.errors[0]["error"].lower()
    states = {delivery.state for delivery in Delivery.objects.with_state()}
    assert states == {DeliveryState.SENT}
