"""A schedule that keeps failing: counted, told, paused, by real processes over a real network."""

from collections.abc import Iterator
from datetime import timedelta
from email import message_from_bytes, policy
from pathlib import Path

import pytest
from pytest_django import Settings

from scheduling import schedules
from scheduling.jobs import enqueue
from scheduling.models import FailureGroup, Policy, Run, State
from scheduling.schedules import Every
from tests.jobs import tasks
from tests.scheduling.outgoing.test_webhooks import Hook
from tests.system.processes import System
from tests.waiting import wait_for


@pytest.fixture
def hook(settings: Settings) -> Iterator[Hook]:
    settings.ALERT_ALLOW_PRIVATE = True
    made = Hook()
    yield made
    made.close()


def test_a_schedule_that_keeps_failing_is_told_of_and_paused(
    system: System, hook: Hook, tmp_path: Path
) -> None:
    system.env |= {
        "ALERTS_TO": "team@example.org",
        "ALERT_ALLOW_PRIVATE": "1",
        "ALERT_PACE_SECONDS": "1",
        "RETRY_BACKOFF_SECONDS": "0.1",
    }
    hook.status = 503
    system.beat()
    system.beat()
    system.ready_worker(2)
    row = schedules.add(
        "failing", tasks.fail_for_good.name, Every(timedelta(seconds=1)), by="ann",
        args=["no use"], pause_after_failures=3, owner=hook.url,
    )  # fmt: skip
    enqueue(tasks.unspeakable, max_attempts=1)

    wait_for(lambda: len(hook.calls) >= 2, timeout=30)
    hook.status = 204  # a refused message is sent again, under the same id

    def heard() -> set[str]:
        return {body["event"] for _, _, body in hook.calls}

    wait_for(lambda: heard() == {"failures", "paused"}, timeout=20)
    wait_for(
        lambda: not Run.objects.filter(task="scheduling.tasks.tell")
        .exclude(state=State.SUCCEEDED).exists(),
        timeout=20,
    )  # fmt: skip
    assert Policy.objects.get(schedule=row).paused_by == "truebeat"
    failed = Run.objects.filter(schedule_id=row.pk)
    assert [run.state for run in failed] == [State.FAILED] * 3, "and no other came after them"
    assert set(FailureGroup.objects.values_list("exception", "place", "count")) == {
        ("PermanentError", "tests/jobs/tasks.py:fail_for_good", 3),
        ("Unspeakable", "tests/jobs/tasks.py:unspeakable", 1),
    }
    ids = {body["id"] for _, _, body in hook.calls}
    told = Run.objects.filter(task="scheduling.tasks.tell", args__contains=hook.url)
    assert ids == {str(run.pk) for run in told}
    assert len(hook.calls) > len(ids), "a refused one was sent again"
    assert all(headers["Idempotency-Key"] == body["id"] for _, headers, body in hook.calls)
    (mail,) = (tmp_path / "mail").iterdir()
    message = message_from_bytes(mail.read_bytes(), policy=policy.default)
    assert message["To"] == "team@example.org"
    assert "Unspeakable in tests.jobs.tasks.unspeakable" in message["Subject"]
