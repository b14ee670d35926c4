"""The usual day: schedules fire, workers run, and everything leaves its row."""

from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from celery.result import AsyncResult
from django.db import connection
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
)
from pytest_django import Settings

from scheduling import clock
from scheduling.execution.cancelling import cancel
from scheduling.jobs import Call, enqueue, enqueue_many
from scheduling.models import Origin, Plan, Run, State
from tests.jobs import tasks
from tests.system.processes import System
from tests.waiting import wait_for

WRITE = "tests.jobs.tasks.write"


def runs_of(name: str) -> list[Run]:
    return list(Run.objects.filter(schedule_name=name).order_by("due_at"))


def test_it_fires_rows_that_were_made_in_every_way(system: System, evidence: Path) -> None:
    every_second, _ = IntervalSchedule.objects.get_or_create(every=1, period="seconds")
    soon = ClockedSchedule.objects.create(clocked_time=clock.now() + timedelta(seconds=3))
    kwargs = f'{{"path": "{evidence}"}}'
    PeriodicTask.objects.create(name="form", task=WRITE, kwargs=kwargs, interval=every_second)
    PeriodicTask.objects.bulk_create(
        [PeriodicTask(name="bulk", task=WRITE, kwargs=kwargs, clocked=soon, one_off=True)]
    )
    never = CrontabSchedule.objects.create(minute="0", hour="0", day_of_month="29",
                                           month_of_year="2")  # fmt: skip
    PeriodicTask.objects.create(name="update", task=WRITE, kwargs=kwargs, crontab=never)
    PeriodicTask.objects.create(name="broken", task=WRITE, args="[1,", interval=every_second)
    system.beat()
    system.ready_worker()
    PeriodicTask.objects.filter(name="update").update(crontab=None, interval=every_second)
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO django_celery_beat_periodictask (name, task, args, kwargs, headers,"
            " enabled, one_off, total_run_count, date_changed, description, interval_id)"
            " VALUES ('raw', %s, '[]', %s, '{}', true, false, 0, now(), '', %s)",
            [WRITE, kwargs, every_second.pk],
        )

    def all_ran() -> bool:
        names = Run.objects.filter(state=State.SUCCEEDED).values_list("schedule_name", flat=True)
        return {"form", "bulk", "update", "raw"} <= set(names)

    wait_for(all_ran, timeout=20)
    assert "broken" not in {run.schedule_name for run in Run.objects.all()}
    assert "args are not JSON" in Plan.objects.get(schedule__name="broken").error
    form = runs_of("form")
    # Each second has its run, or is counted on the one before it, where beat came late.
    for run, later in pairwise(form):
        assert later.due_at - run.due_at == timedelta(seconds=1 + run.coalesced)
    assert all(run.started_at and run.started_at >= run.run_at for run in form[:2])
    assert len(runs_of("bulk")) == 1
    wait_for(lambda: not PeriodicTask.objects.get(name="bulk").enabled, timeout=20)


def test_a_shared_rules_edit_reaches_all_its_schedules(system: System, evidence: Path) -> None:
    seldom = IntervalSchedule.objects.create(every=1, period="days")
    PeriodicTask.objects.bulk_create(
        PeriodicTask(name=f"s{n}", task=WRITE, args=f'["{evidence}"]', interval=seldom)
        for n in range(5)
    )
    system.beat().wait_until_said("plans_made")
    system.ready_worker()
    IntervalSchedule.objects.filter(pk=seldom.pk).update(period="seconds")
    wait_for(
        lambda: (
            Run.objects.filter(state=State.SUCCEEDED).values("schedule_id").distinct().count() == 5
        ),
        timeout=10,
    )


def test_enqueued_jobs_run_once_and_their_results_are_kept(system: System, evidence: Path) -> None:
    system.beat()
    system.ready_worker(4)
    added = enqueue(tasks.add, (2, 3))
    enqueue_many(tasks.write, (Call((str(evidence), str(n))) for n in range(500)))
    later = tasks.write.apply_async((str(evidence), "later"), countdown=1)
    wait_for(lambda: not Run.objects.exclude(state=State.SUCCEEDED).exists(), timeout=30)
    assert AsyncResult(str(added.id)).get(timeout=1) == 5
    assert sorted(evidence.read_text().split()) == sorted([*map(str, range(500)), "later"])
    run = Run.objects.get(pk=later.id)
    assert run.started_at is not None
    assert run.started_at >= run.created_at + timedelta(seconds=1)


Ending = tuple[State, int, int]  # state, attempt, failures


def endings(at: Path, *, ignored: bool) -> dict[UUID, Ending]:
    """Enqueue runs that end in every way, and say how each will; results kept, or ignored."""
    at.mkdir()
    return {
        enqueue(tasks.fail, (str(at / "a"), 2)).id: (State.SUCCEEDED, 3, 2),
        enqueue(tasks.fail, (str(at / "b"), 9)).id: (State.FAILED, 3, 3),
        enqueue(tasks.fail, (str(at / "c"), 9), max_attempts=1).id: (State.FAILED, 1, 1),
        enqueue(tasks.fail_for_good, ("no",)).id: (State.FAILED, 1, 1),
        enqueue(tasks.autoretry, (str(at / "d"), 2)).id: (State.SUCCEEDED, 3, 2),
        enqueue(tasks.autoretry, (str(at / "e"), 9)).id: (State.FAILED, 3, 3),
        enqueue(tasks.retry_in_transaction, (str(at / "f"), 4)).id: (State.SUCCEEDED, 5, 4),
        enqueue(tasks.replace_itself, (str(at / "g"),)).id: (State.SUCCEEDED, 2, 0),
        enqueue(tasks.end_with, ("ignore",)).id: (State.SUCCEEDED, 1, 0),
        enqueue(tasks.end_with, ("reject",)).id: (State.FAILED, 1, 1),
        enqueue(tasks.end_with, ("exit",), max_attempts=2).id: (State.FAILED, 2, 2),
        enqueue(tasks.end_with, ("memory",), max_attempts=2).id: (State.FAILED, 2, 2),
        enqueue(tasks.without_result, (str(at / "h"),)).id: (State.SUCCEEDED, 1, 0),
        # A result that is not kept need not be JSON.
        enqueue(tasks.unserialisable).id: (State.SUCCEEDED, 1, 0) if ignored
        else (State.FAILED, 1, 1),
        enqueue(tasks.unspeakable, max_attempts=1).id: (State.FAILED, 1, 1),
        enqueue(tasks.retry_in_ages, max_attempts=2).id: (State.FAILED, 2, 2),
    }  # fmt: skip


def endings_by_force(at: Path) -> dict[UUID, Ending]:
    """Enqueue runs whose child is killed, or by Celery or by a cancel."""
    return {
        enqueue(tasks.end_with, ("kill",)).id: (State.FAILED, 3, 3),
        enqueue(tasks.hardly).id: (State.FAILED, 2, 2),
        enqueue(tasks.softly).id: (State.FAILED, 1, 1),
        enqueue(tasks.sleep, (str(at / "i"), 60), max_attempts=1).id: (State.CANCELLED, 1, 0),
    }


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_every_ending_leaves_the_run_in_the_right_state(
    system: System, tmp_path: Path, pool: str
) -> None:
    expected: dict[UUID, Ending] = {}
    for ignored in (False, True):
        made = endings(tmp_path / f"ignored-{ignored}", ignored=ignored)
        if pool == "prefork":  # a thread cannot be killed
            made |= endings_by_force(tmp_path / f"ignored-{ignored}")
        if ignored:
            Run.objects.filter(pk__in=made).update(options='{"ignore_result": true}')
        expected |= made
    system.beat()
    worker = system.ready_worker(4, "--pool", pool)
    sleeping = Run.objects.filter(task=tasks.sleep.name)
    wait_for(lambda: not sleeping.exclude(state=State.RUNNING).exists(), timeout=20)
    for run in sleeping:
        assert cancel(run.pk, by="a test").state == State.RUNNING
    wait_for(
        lambda: not Run.objects.filter(state__in=["scheduled", "queued", "running"]).exists(),
        timeout=60,
    )
    ended = {run.id: (run.state, run.attempt, run.failures) for run in Run.objects.all()}
    assert ended == expected
    failed = Run.objects.filter(state=State.FAILED)
    assert all(len(run.errors) == run.failures and run.reason for run in failed)
    assert not worker.said("worker_restarts")
    assert not worker.ended()


def test_children_share_what_their_parent_has_imported(system: System) -> None:
    system.beat()
    system.ready_worker()
    run_id = enqueue(tasks.shared_objects).id
    assert AsyncResult(str(run_id)).get(timeout=30) > 50_000


def test_time_limits_are_recorded_as_such(system: System, tmp_path: Path) -> None:
    expected = {
        enqueue(tasks.softly).id: ("SoftTimeLimitExceeded", 1),
        enqueue(tasks.hardly).id: ("TimeLimitExceeded", 2),
        UUID(tasks.once.apply_async(countdown=0.01, time_limit=1).id): ("TimeLimitExceeded", 1),
        UUID(tasks.once.apply_async(countdown=0.01, soft_time_limit=1).id): (
            "SoftTimeLimitExceeded", 1,
        ),
    }  # fmt: skip
    system.beat()
    system.ready_worker(4)
    wait_for(lambda: not Run.objects.exclude(state=State.FAILED).exists(), timeout=30)
    for run in Run.objects.all():
        name, attempts = expected[run.id]
        assert [error["attempt"] for error in run.errors] == [*range(1, attempts + 1)]
        for error in run.errors:
            assert error["error"].startswith(name)
            assert error["worker"]
            started, ended = (
                datetime.fromisoformat(error[when]) for when in ("started_at", "ended_at")
            )
            # Celery's watch begins before the claim.
            assert timedelta(seconds=0.5) <= ended - started < timedelta(seconds=8)
        assert run.reason.startswith(name)
        with pytest.raises((SoftTimeLimitExceeded, TimeLimitExceeded)):
            AsyncResult(str(run.id)).get(timeout=1)


def test_a_retry_of_a_plain_message_becomes_a_run(
    system: System, evidence: Path, settings: Settings
) -> None:
    settings.UNTRACKED_TASKS = [tasks.retry_in_transaction.name]
    system.beat()
    system.ready_worker(UNTRACKED_TASKS=tasks.retry_in_transaction.name)
    result = tasks.retry_in_transaction.delay(str(evidence), 2)
    assert result.get(timeout=20) == "done"
    run = Run.objects.get(pk=result.id)
    assert (run.origin, run.state, run.failures) == (Origin.ADHOC, State.SUCCEEDED, 2)
    assert evidence.read_text().split("\n")[:3] == ["retries 0", "retries 1", "retries 2"]


def test_a_plain_message_starts_nothing_that_is_not_named(
    system: System, evidence: Path, settings: Settings
) -> None:
    allowed, refused = tasks.write, tasks.sleep
    worker = system.ready_worker(1, UNTRACKED_TASKS=allowed.name)
    settings.UNTRACKED_TASKS = [allowed.name, refused.name]  # in this sender's settings
    for number in range(3):
        refused.delay(str(evidence), number)
    allowed.delay(str(evidence), "allowed")
    wait_for(lambda: evidence.read_text() == "allowed\n", timeout=20)
    system.beat()
    settings.UNTRACKED_TASKS = []
    refused.delay(str(evidence), 0)
    wait_for(lambda: Run.objects.get().state == State.SUCCEEDED, timeout=20)
    said = [line.rsplit(" ", 1)[0] for line in evidence.read_text().splitlines()]
    assert said == ["allowed", "start 1", "end 1"]
    assert worker.output().count("untracked_refused") == 1


def test_celerys_own_command_to_call_a_task_writes_a_run(system: System) -> None:
    call = system.start("call", "celery", "-A", "config", "call", "elsewhere.task", "-a", "[1]")
    assert call.wait(30) == 0
    assert call.output().strip() == str(Run.objects.get().pk)


def test_a_run_of_an_unknown_task_waits_until_a_worker_knows_it(
    system: System, evidence: Path
) -> None:
    system.beat()
    ignorant = system.ready_worker(1, DJANGO_SETTINGS_MODULE="config.settings")
    run_id = enqueue(tasks.write, (str(evidence),)).id
    ignorant.wait_until_said("task_unknown")
    run = Run.objects.get(pk=run_id)
    assert (run.state, run.attempt) == (State.SCHEDULED, 1)
    assert "no worker knows task" in run.reason
    ignorant.stop()
    Run.objects.filter(pk=run_id).update(run_at=clock.now())
    system.ready_worker()
    wait_for(lambda: Run.objects.get(pk=run_id).state == State.SUCCEEDED, timeout=10)


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_full_worker_goes_on_as_soon_as_it_is_not(
    system: System, evidence: Path, pool: str
) -> None:
    system.beat()
    system.ready_worker(1, "--pool", pool)
    enqueue_many(tasks.write, [Call((str(evidence), str(number))) for number in range(50)])
    # Were it to wait for a timer of its loop after each: ten seconds at the least.
    wait_for(lambda: len(evidence.read_text().splitlines()) == 50, timeout=10)
