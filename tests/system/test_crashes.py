"""kill -9, freeze and wipe: a death delays work, and never drops or doubles it."""

import os
import signal
import threading
from collections import Counter
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis
from django.db import connection, connections, transaction
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from chaos.network import Proxy
from config.embedded import PostgresServer, RedisServer
from scheduling import clock
from scheduling.jobs import Call, enqueue, enqueue_many
from scheduling.models import UNFINISHED, Plan, Run, State
from tests.jobs import tasks
from tests.system.processes import System
from tests.waiting import wait_for


def all_final() -> bool:
    return Run.objects.exists() and not Run.objects.filter(state__in=UNFINISHED).exists()


def starts(evidence: Path) -> Counter[str]:
    return Counter(evidence.read_text().splitlines())


def test_a_beat_that_dies_between_commit_and_push_loses_nothing(
    system: System, evidence: Path
) -> None:
    enqueue_many(tasks.write, (Call((str(evidence), str(n))) for n in range(50)))
    dying = system.beat("tests.system.dying_beat")
    wait_for(dying.ended, timeout=20)
    assert set(Run.objects.values_list("state", flat=True)) == {State.QUEUED}
    system.ready_worker()
    system.beat()
    wait_for(all_final, timeout=20)
    assert starts(evidence) == {str(n): 1 for n in range(50)}
    assert not Run.objects.exclude(state=State.SUCCEEDED).exists()


def test_a_worker_that_dies_in_mid_run_is_replaced(system: System, evidence: Path) -> None:
    system.beat()
    doomed = system.ready_worker(1)
    run_id = enqueue(tasks.sleep, (str(evidence), 30)).id
    wait_for(lambda: "start 1" in evidence.read_text(), timeout=20)
    doomed.kill()
    Run.objects.filter(pk=run_id).update(args=f'["{evidence}", 0.1]')
    system.ready_worker(1)
    wait_for(lambda: Run.objects.get(pk=run_id).state == State.SUCCEEDED, timeout=20)
    run = Run.objects.get(pk=run_id)
    assert (run.attempt, run.failures) == (2, 1)
    assert "WorkerLostError" in run.errors[0]["error"]
    assert [line.split()[:2] for line in evidence.read_text().splitlines()] == [
        ["start", "1"], ["start", "2"], ["end", "2"],
    ]  # fmt: skip


def test_with_settings_as_they_come_a_lost_run_starts_again_within_35_seconds(
    system: System, evidence: Path
) -> None:
    for name in ("RUN_LEASE_SECONDS", "RETRY_BACKOFF_SECONDS"):
        del system.env[name]
    system.beat()
    doomed = system.ready_worker(2)
    runs = [enqueue(tasks.sleep, (str(evidence), 90)).id for _ in range(2)]
    wait_for(lambda: evidence.read_text().count("start 1") == 2, timeout=20)
    system.ready_worker(2)
    Run.objects.update(args=f'["{evidence}", 0.1]')
    child = int(evidence.read_text().split()[2])
    os.kill(child, signal.SIGKILL)
    died_at = clock.now()
    wait_for(lambda: Run.objects.filter(pk__in=runs, state=State.SUCCEEDED).exists(), timeout=10)
    doomed.kill()
    lost_at = clock.now()
    wait_for(all_final, timeout=40)
    first, second = Run.objects.filter(pk__in=runs).order_by("finished_at")
    assert [(run.state, run.attempt, run.failures) for run in (first, second)] == [
        (State.SUCCEEDED, 2, 1)
    ] * 2
    assert started(first) - died_at < timedelta(seconds=5)
    assert timedelta(seconds=15) < started(second) - lost_at < timedelta(seconds=35)


def started(run: Run) -> datetime:
    assert run.started_at is not None
    return run.started_at


@pytest.mark.parametrize(
    ("task", "how"),
    [(tasks.end_with, "kill"), (tasks.end_with, "terminate"),
     (tasks.end_with_for_ever, "kill"), (tasks.end_with_for_ever, "exit")],
    ids=["kill", "terminate", "kill for ever", "exit for ever"],
)  # fmt: skip
def test_a_run_that_kills_its_worker_every_time_ends_as_failed(
    system: System, task: Any, how: str
) -> None:
    system.beat()
    system.ready_worker(1)
    run_id = enqueue(task, (how,)).id
    wait_for(lambda: Run.objects.get(pk=run_id).state == State.FAILED, timeout=30)
    run = Run.objects.get(pk=run_id)
    assert (run.attempt, run.failures, len(run.errors)) == (3, 3, 3)
    assert run.reason.startswith("SystemExit" if how == "exit" else "WorkerLostError")


def test_a_run_that_takes_each_worker_down_with_it_ends_as_failed(system: System) -> None:
    system.beat()
    workers = [system.worker(1) for _ in range(2)]
    for worker in workers:
        worker.wait_until_said(" ready.")
    run_id = enqueue(tasks.end_with, ("kill worker",), max_attempts=2).id
    wait_for(lambda: Run.objects.get(pk=run_id).state == State.FAILED, timeout=30)
    run = Run.objects.get(pk=run_id)
    assert [worker.wait(0) for worker in workers] == [-9, -9]
    assert (run.attempt, run.failures, len(run.errors)) == (2, 2, 2)
    assert "its lease ran out" in run.reason


def test_a_frozen_worker_that_wakes_can_record_nothing(system: System, evidence: Path) -> None:
    system.beat()
    frozen = system.ready_worker(1)
    run_id = enqueue(tasks.sleep, (str(evidence), 1)).id
    wait_for(lambda: "start 1" in evidence.read_text(), timeout=20)
    frozen.signal(signal.SIGSTOP)
    other = system.ready_worker(1)
    wait_for(lambda: Run.objects.get(pk=run_id).state == State.SUCCEEDED, timeout=20)
    finished = Run.objects.get(pk=run_id)
    frozen.signal(signal.SIGCONT)
    wait_for(lambda: "end 1" in evidence.read_text() or frozen.said("run_stopped"), timeout=20)
    wait_for(lambda: frozen.said("fence_lost") or frozen.said("run_stopped"), timeout=20)
    run = Run.objects.get(pk=run_id)
    assert (run.attempt, run.worker) == (2, finished.worker)
    assert run.finished_at == finished.finished_at
    assert not other.said("fence_lost")


def test_redis_killed_and_back_empty_only_delays(
    system: System, evidence: Path, own_redis: RedisServer
) -> None:
    system.env["REDIS_URL"] = own_redis.url
    system.beat()
    # No worker takes the hints, so they lie in Redis when it dies with all its data.
    enqueue_many(tasks.write, (Call((str(evidence), str(n))) for n in range(100)))
    wait_for(lambda: Run.objects.filter(state=State.QUEUED).count() == 100, timeout=20)
    own_redis.kill()
    own_redis.start()
    with redis.Redis.from_url(own_redis.url) as client:
        wait_for(lambda: client.llen("celery\x06\x166") == 100, timeout=15)
    worker = system.ready_worker(2)
    wait_for(all_final, timeout=30)
    assert starts(evidence) == {str(n): 1 for n in range(100)}
    # And once more under a worker that was connected: it must find its way back.
    own_redis.kill()
    enqueue_many(tasks.write, (Call((str(evidence), str(n))) for n in range(100, 200)))
    own_redis.start()
    wait_for(all_final, timeout=40)
    assert starts(evidence) == {str(n): 1 for n in range(200)}
    assert not worker.ended()


def test_postgres_restarted_under_everything_only_delays(
    system: System, evidence: Path, own_postgres: PostgresServer, tmp_path: Path
) -> None:
    system.env |= {"DATABASE_URL": own_postgres.url, "RUN_LEASE_SECONDS": "6"}
    original = connection.settings_dict.copy()
    connections["default"].close()
    try:
        _point_django_at(own_postgres)
        migrate = system.start("migrate", "django", "migrate", "--verbosity", "0")
        assert migrate.wait(60) == 0, migrate.output()
        beat, worker = system.beat(), system.ready_worker(2)
        for n in range(10):
            enqueue(tasks.write, (str(evidence), f"before{n}"))
        long = enqueue(tasks.sleep, (str(evidence), 1)).id
        wait_for(lambda: "start 1" in evidence.read_text(), timeout=20)
        connection.close()
        own_postgres.stop()
        wait_for(lambda: "end 1" in evidence.read_text(), timeout=20)  # and no ledger to record it
        own_postgres.start()
        for n in range(10):
            enqueue(tasks.write, (str(evidence), f"after{n}"))
        short = Run.objects.exclude(pk=long)
        wait_for(lambda: not short.filter(state__in=UNFINISHED).exists(), timeout=10)
        wait_for(all_final, timeout=40)
        run = Run.objects.get(pk=long)
        assert (run.state, run.attempt, run.failures) == (State.SUCCEEDED, 1, 0)
        counted = starts(evidence)
        assert all(counted[f"{when}{n}"] == 1 for when in ("before", "after") for n in range(10))
        assert not beat.ended()
        assert not worker.ended()
    finally:
        connection.close()
        connection.settings_dict.update(original)


def _point_django_at(server: PostgresServer) -> None:
    import environ

    connection.settings_dict.update(environ.Env.db_url_config(server.url))


def test_two_beats_of_which_one_is_frozen_double_and_miss_nothing(
    system: System, evidence: Path
) -> None:
    every_second = IntervalSchedule.objects.create(every=1, period="seconds")
    PeriodicTask.objects.bulk_create(
        PeriodicTask(
            name=f"s{n}",
            task="tests.jobs.tasks.write",
            args=f'["{evidence}"]',
            interval=every_second,
        )
        for n in range(20)
    )
    frozen, _ = system.beat(), system.beat()
    system.ready_worker(2)
    wait_for(lambda: Run.objects.filter(state=State.SUCCEEDED).count() > 40, timeout=20)
    frozen.signal(signal.SIGSTOP)
    begun = clock.now()
    wait_for(lambda: clock.now() > begun + timedelta(seconds=4), timeout=10)
    frozen.signal(signal.SIGCONT)
    wait_for(lambda: clock.now() > begun + timedelta(seconds=6), timeout=10)
    PeriodicTask.objects.update(enabled=False)
    wait_for(lambda: not Plan.objects.filter(next_due_at__isnull=False).exists(), timeout=10)
    wait_for(all_final, timeout=20)
    for name in {run.schedule_name for run in Run.objects.all()}:
        runs = Run.objects.filter(schedule_name=name).order_by("due_at")
        for run, later in pairwise(runs):
            assert later.due_at - run.due_at == timedelta(seconds=1 + run.coalesced), name
    assert max(starts(evidence).values()) == 1
    assert sum(starts(evidence).values()) == Run.objects.count()
    late = [run for run in Run.objects.all() if run.started_at and run.started_at < run.run_at]
    assert late == []


def test_a_postgres_that_nobody_reaches_for_longer_than_a_lease_only_delays(
    system: System, evidence: Path
) -> None:
    with Proxy.before(system.env["DATABASE_URL"]) as proxy:
        system.env["DATABASE_URL"] = f"{proxy.url}?connect_timeout=1"
        system.beat()
        worker = system.ready_worker(1)
        at_work = enqueue(tasks.tick, (str(evidence), 25), max_attempts=2).id
        wait_for(lambda: "at 1" in evidence.read_text(), timeout=20)
        Run.objects.filter(pk=at_work).update(args=f'["{evidence}", 0.1]')
        enqueue(tasks.write, (str(evidence), "later"), after=timedelta(seconds=1))
        proxy.cut_off()
        cut_at = clock.now()
        worker.wait_until_said("run_stopped", timeout=10)
        wait_for(lambda: clock.now() > cut_at + timedelta(seconds=5), timeout=10)
        assert Run.objects.get(pk=at_work).state == State.RUNNING
        proxy.mend()
        wait_for(all_final, timeout=20)
    run = Run.objects.get(pk=at_work)
    assert (run.state, run.attempt, run.failures) == (State.SUCCEEDED, 2, 0), run.errors
    assert starts(evidence)["later"] == 1


def test_garbage_and_forged_hints_start_nothing_and_stop_nobody(
    system: System, evidence: Path, redis_client: redis.Redis
) -> None:
    from scheduling.runs.hints import Hint, message

    future = enqueue(tasks.write, (str(evidence), "future"), after=timedelta(hours=1))
    system.beat()
    worker = system.ready_worker(1)
    forged = Hint(future.id, 1, future.task, future.queue, future.priority, "{}")
    for payload in (message(forged), message(forged._replace(attempt=7)), "garbage", "{}"):
        redis_client.lpush("celery", payload)
    run_id = enqueue(tasks.write, (str(evidence), "real")).id
    wait_for(lambda: Run.objects.get(pk=run_id).state == State.SUCCEEDED, timeout=20)
    assert evidence.read_text() == "real\n"
    assert Run.objects.get(pk=future.id).state == State.SCHEDULED
    assert not worker.ended()


def test_a_warm_shutdown_lets_a_run_finish(system: System, evidence: Path) -> None:
    system.beat()
    worker = system.ready_worker(1)
    run_id = enqueue(tasks.sleep, (str(evidence), 5)).id  # longer than a lease
    wait_for(lambda: "start 1" in evidence.read_text(), timeout=20)
    assert worker.stop() == 0
    run = Run.objects.get(pk=run_id)
    assert (run.state, run.attempt) == (State.SUCCEEDED, 1)


def test_a_second_hint_does_not_take_the_lease_of_a_run_that_is_at_work(
    system: System, evidence: Path, redis_client: redis.Redis
) -> None:
    from scheduling.runs.hints import Hint, message

    system.beat()
    system.ready_worker(2)
    run_id = enqueue(tasks.sleep, (str(evidence), 6)).id  # twice as long as a lease
    wait_for(lambda: "start 1" in evidence.read_text(), timeout=20)
    run = Run.objects.get(pk=run_id)
    for _ in range(3):
        redis_client.lpush(
            "celery\x06\x166", message(Hint(run_id, 1, run.task, run.queue, run.priority, "{}"))
        )
    wait_for(lambda: Run.objects.get(pk=run_id).state == State.SUCCEEDED, timeout=20)
    assert Run.objects.get(pk=run_id).attempt == 1
    assert [line.split()[0] for line in evidence.read_text().splitlines()] == ["start", "end"]


def test_a_row_that_somebody_holds_stops_neither_beat_nor_the_other_leases(
    system: System, evidence: Path
) -> None:
    system.beat()
    system.ready_worker(2)
    held = enqueue(tasks.sleep, (str(evidence), 6)).id
    other = enqueue(tasks.sleep, (str(evidence), 6)).id
    wait_for(lambda: evidence.read_text().count("start 1") == 2, timeout=20)
    with transaction.atomic():
        Run.objects.select_for_update().get(pk=held)
        begun = clock.now()
        wait_for(lambda: Run.objects.get(pk=other).state == State.SUCCEEDED, timeout=20)
        late = enqueue_elsewhere(tasks.write, str(evidence))
        wait_for(lambda: Run.objects.get(pk=late).state == State.SUCCEEDED, timeout=10)
        assert clock.now() > begun + timedelta(seconds=3)
    wait_for(all_final, timeout=20)
    assert Run.objects.get(pk=other).attempt == 1


def enqueue_elsewhere(task: Any, path: str) -> Any:
    """Enqueue on a connection of its own, whose transaction commits at once."""
    found: list[Any] = []

    def work() -> None:
        found.append(enqueue(task, (path,)).id)
        connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    return found[0]


def test_a_job_that_leaves_a_transaction_open_spoils_nothing_after_it(
    system: System, evidence: Path
) -> None:
    system.beat()
    system.ready_worker(1)
    first = enqueue(tasks.begin_and_leave).id
    wait_for(lambda: Run.objects.get(pk=first).state == State.SUCCEEDED, timeout=20)
    second = enqueue(tasks.write, (str(evidence), "after")).id
    wait_for(lambda: Run.objects.get(pk=second).state == State.SUCCEEDED, timeout=20)
    assert evidence.read_text() == "after\n"


def test_a_queue_that_is_no_list_in_redis_stops_no_other(
    system: System, evidence: Path, redis_client: redis.Redis
) -> None:
    redis_client.sadd("not-a-list", "x")
    enqueue(tasks.write, (str(evidence), "never"), queue="not-a-list", priority="front")
    system.beat()
    system.ready_worker(1)
    run_id = enqueue(tasks.write, (str(evidence), "other")).id
    wait_for(lambda: Run.objects.get(pk=run_id).state == State.SUCCEEDED, timeout=20)
    assert evidence.read_text() == "other\n"
