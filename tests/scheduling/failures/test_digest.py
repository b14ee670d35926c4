"""The daily digest: its recipients, and the part that each receives."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from scheduling import clock, schedules
from scheduling.failures import digest
from scheduling.models import FailureGroup, Plan, Run, State
from scheduling.tasks import digest as digest_job
from scheduling.tasks import tell
from tests.mail_server import MailServer
from tests.scheduling.failures.test_alerts import ANN, BEN, TEAM, written
from tests.scheduling.failures.test_groups import fail, settle
from tests.scheduling.ledger import run, schedule

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _the_team_is_told(settings: Settings) -> None:
    settings.ALERTS_TO = [TEAM]


def write() -> dict[str, dict[str, Any]]:
    """Write the digests; return only these, by address."""
    Run.objects.filter(task="scheduling.tasks.tell").delete()
    digest.write()
    return written()


def test_nothing_is_sent_when_there_is_nothing() -> None:
    run(State.SUCCEEDED)
    assert digest_job() == 0
    assert not Run.objects.filter(task="scheduling.tasks.tell").exists()


def test_nothing_is_sent_when_there_is_nobody(settings: Settings) -> None:
    settings.ALERTS_TO = []
    fail(schedule())
    settle()
    assert digest_job() == 0


def test_a_failure_is_reported_once_and_counted_from_the_last_digest() -> None:
    row = schedule("nightly")
    for _ in range(3):
        fail(row)
    settle()
    (entry,) = write()[TEAM]["failures"]
    assert (entry["count"], entry["since_last_digest"], entry["schedules"]) == (3, 3, ["nightly"])
    Run.objects.filter(state=State.FAILED).update(finished_at=clock.now() - timedelta(days=2))
    assert write() == {}
    fail(row)
    settle()
    (entry,) = write()[TEAM]["failures"]
    assert (entry["count"], entry["since_last_digest"]) == (4, 1)


def test_an_owner_is_told_of_what_is_theirs_and_the_team_of_everything() -> None:
    fail(schedule("a", policy={"owner": f"{ANN}, {BEN}"}), "ValueError: x")
    fail(schedule("b", policy={"owner": BEN}), "KeyError: x")
    fail(error="OSError: x")
    settle()
    told = {
        address: {entry["exception"] for entry in message["failures"]}
        for address, message in write().items()
    }
    assert told == {
        ANN: {"ValueError"},
        BEN: {"ValueError", "KeyError"},
        TEAM: {"ValueError", "KeyError", "OSError"},
    }


def test_it_names_what_is_paused_quarantined_expired_and_late() -> None:
    failing = schedule("failing", policy={"pause_after_failures": 1})
    fail(failing)
    settle()
    schedules.pause(schedule("holiday"), by="ann", reason="closed")
    broken = schedule("broken")
    Plan.objects.filter(schedule=broken).update(error="args are not JSON")
    run(State.EXPIRED, schedule_name="slow")
    run(State.EXPIRED, schedule_name="slow", finished_at=clock.now() - timedelta(days=2))
    run(State.SUCCEEDED, schedule_name="slow", late_by=timedelta(minutes=1))
    message = write()[TEAM]
    assert [(entry["schedule"], entry["by"]) for entry in message["paused"]] == [
        ("holiday", "ann"), ("failing", "truebeat"),
    ]  # fmt: skip
    assert message["quarantined"] == [{"schedule": "broken", "error": "args are not JSON"}]
    assert message["runs"] == [
        {"schedule": "failing", "failed": 1, "expired": 0, "late": 0},
        {"schedule": "slow", "failed": 0, "expired": 1, "late": 1},
    ]
    assert message["subject"] == "Digest: 1 failure, 2 paused, 1 in quarantine"
    for words in ("ValueError in tests.jobs.tasks.add: 1 time", "holiday: since", "by ann: closed",
                  "slow: 1 expired, 1 late"):  # fmt: skip
        assert words in message["text"]


def test_what_people_paused_is_no_reason_to_write() -> None:
    schedules.pause(schedule(), by="ann")
    assert write() == {}


def test_it_arrives_as_a_mail(mail_server: MailServer) -> None:
    fail(schedule())
    settle()
    tell(TEAM, write()[TEAM])
    (mail,) = mail_server.accepted
    assert mail["Subject"] == "[Truebeat] Digest: 1 failure"


def test_long_lists_are_cut_and_counted() -> None:
    for n in range(60):
        fail(error=f"Error{n}: x")
    settle()
    message = write()[TEAM]
    assert len(message["failures"]) == digest.LISTED
    assert message["more"] == {"failures": 10}
    assert "... and 10 more" in message["text"]


def test_a_group_that_nobody_has_seen_for_a_year_is_forgotten(settings: Settings) -> None:
    fail()
    settle()
    FailureGroup.objects.update(last_seen_at=clock.now() - timedelta(days=366))
    settings.KEEP_FAILED = timedelta(0)
    write()
    assert FailureGroup.objects.exists(), "0 is for ever"
    settings.KEEP_FAILED = timedelta(days=365)
    write()
    assert not FailureGroup.objects.exists()


@pytest.mark.usefixtures("bare_runs")
def test_what_went_well_is_not_read() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO scheduling_run (id, origin, task, queue, due_at, run_at, state,"
            " finished_at) SELECT gen_random_uuid(), 'adhoc', 't', 'q', now(), now(), 'succeeded',"
            " now() FROM generate_series(1, 20000) n"
        )
        cursor.execute("ANALYZE scheduling_run")
    with CaptureQueriesContext(connection) as captured:
        digest._wrong(clock.now())
    (sql,) = [query["sql"] for query in captured if "late_by" in query["sql"]]
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}")
        (plan,) = cursor.fetchone()[0]
    assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < 50
