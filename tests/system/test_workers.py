"""Workers end runs on request, and end in order themselves: real workers, real signals."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import current_app, states
from celery.app.control import Control as CeleryControl
from pytest_django import Settings

from chaos.network import Proxy
from scheduling import clock
from scheduling.execution.cancelling import cancel
from scheduling.jobs import Call, enqueue, enqueue_many
from scheduling.models import Heartbeat, Run, State
from tests.jobs import tasks
from tests.system.looks import all_final, lines, run_of
from tests.system.processes import System
from tests.waiting import wait_for

# --- Cancel --------------------------------------------------------------------------------------


def test_a_job_is_told_that_its_run_is_cancelled(system: System, evidence: Path) -> None:
    system.beat()
    worker = system.ready_worker(1, CANCEL_GRACE_SECONDS="60")
    run_id = enqueue(tasks.sleep_on, (str(evidence), 30, False)).id
    wait_for(lambda: "start 1" in lines(evidence), timeout=20)
    assert cancel(run_id, by="a test").cancel_requested_at is not None
    wait_for(lambda: run_of(run_id).state == State.CANCELLED, timeout=10)
    run = run_of(run_id)
    assert lines(evidence) == ["start 1", "told True"]
    assert (run.reason, run.attempt, run.failures) == ("cancelled by a test", 1, 0)
    assert not worker.said("run_stopped")


def test_a_job_that_goes_on_is_killed_after_the_grace_time_and_no_other(
    system: System, evidence: Path
) -> None:
    system.beat()
    worker = system.ready_worker(2)
    run_id = enqueue(tasks.sleep_on, (str(evidence), 30, True)).id
    other = enqueue(tasks.sleep, (str(evidence), 5)).id
    wait_for(lambda: len(lines(evidence)) == 2, timeout=20)
    cancel(run_id, by="a test")
    wait_for(lambda: run_of(run_id).state == State.CANCELLED, timeout=15)
    assert "told True" in lines(evidence)
    worker.wait_until_said("run_stopped")
    wait_for(lambda: run_of(other).state == State.SUCCEEDED, timeout=15)
    assert run_of(other).attempt == 1


def test_a_pool_of_threads_starts_anew_for_a_cancelled_run_and_hands_back_the_others(
    system: System, evidence: Path
) -> None:
    system.beat()
    worker = system.ready_worker(2, "--pool", "threads")
    run_id = enqueue(tasks.sleep, (str(evidence), 60)).id
    other = enqueue(tasks.sleep, (str(evidence), 6)).id
    wait_for(lambda: len(lines(evidence)) == 2, timeout=20)
    cancel(run_id, by="a test")
    wait_for(lambda: run_of(run_id).state == State.CANCELLED, timeout=15)
    wait_for(lambda: run_of(other).state == State.SUCCEEDED, timeout=30)
    assert (run_of(other).attempt, run_of(other).failures) == (2, 0)
    assert worker.said("worker_restarts")
    assert not worker.ended()


# --- A worker that is cut off --------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_worker_that_cannot_renew_its_leases_stops_its_work(
    system: System, evidence: Path, pool: str
) -> None:
    system.beat()
    with Proxy.before(system.env["DATABASE_URL"]) as proxy:
        alone = system.ready_worker(
            1, "--pool", pool, DATABASE_URL=f"{proxy.url}?connect_timeout=1"
        )
        run_id = enqueue(tasks.tick, (str(evidence), 25)).id
        wait_for(lambda: "at 1" in evidence.read_text(), timeout=20)
        Run.objects.filter(pk=run_id).update(args=f'["{evidence}", 1.5]')
        other = system.ready_worker(1)
        proxy.cut_off()
        begun = clock.now()
        alone.wait_until_said("run_stopped" if pool == "prefork" else "worker_restarts", timeout=15)
        wait_for(lambda: run_of(run_id).state == State.SUCCEEDED, timeout=15)
        assert (clock.now() - begun).total_seconds() < 20
        assert (run_of(run_id).attempt, run_of(run_id).failures) == (2, 1)
        other.stop()
        proxy.mend()
        after = enqueue(tasks.write, (str(evidence), "after")).id
        wait_for(lambda: run_of(after).state == State.SUCCEEDED, timeout=20)
    # No attempt is at work any more when the next one begins.
    assert [line for line, _ in groupby(lines(evidence))] == ["at 1", "at 2", "after"]
    assert not alone.ended()


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_job_whose_connection_is_dead_but_open_goes_on_with_another(
    system: System, evidence: Path, pool: str
) -> None:
    system.beat()
    with Proxy.before(system.env["DATABASE_URL"]) as proxy:
        worker = system.ready_worker(1, "--pool", pool, DATABASE_URL=proxy.url)
        enqueue(tasks.write, (str(evidence), "first"))
        wait_for(all_final, timeout=20)
        proxy.swallow()  # before a claim
        enqueue(tasks.sleep, (str(evidence), 0.5))
        wait_for(lambda: len(lines(evidence)) > 1, timeout=20)
        proxy.swallow()  # before an end
        wait_for(all_final, timeout=20)
    assert set(Run.objects.values_list("state", flat=True)) == {State.SUCCEEDED}
    assert worker.said("database_silent")


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_run_that_is_revoked_ends_wherever_it_is(
    system: System, evidence: Path, pool: str
) -> None:
    system.beat()
    system.ready_worker(2, "--pool", pool)
    # One attempt: a user who asked for its end receives no message about a failure.
    running = enqueue(tasks.sleep, (str(evidence), 60), max_attempts=1).id
    soon, later = (
        enqueue(tasks.write, (str(evidence), "ran"), after=timedelta(seconds=after)).id
        for after in (3, 3600)
    )
    wait_for(lambda: "start 1" in evidence.read_text(), timeout=20)
    # As from a process that knows Celery but not the ledger: the workers ignore it.
    CeleryControl(current_app).revoke(str(soon))
    subprocess.run(
        [sys.executable, "-m", "celery", "-A", "config", "control", "revoke", str(later)],
        env=system.env, check=True, timeout=20, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    assert run_of(later).state == State.CANCELLED
    wait_for(lambda: run_of(soon).state == State.SUCCEEDED, timeout=20)
    current_app.control.revoke(str(running), terminate=True)
    wait_for(lambda: run_of(running).state == State.CANCELLED, timeout=20)
    assert len(lines(evidence)) == 2


def test_a_run_that_is_revoked_and_goes_on_is_not_called_revoked(
    system: System, evidence: Path
) -> None:
    system.beat()
    workers = [system.ready_worker(1) for _ in range(2)]
    running = enqueue(tasks.sleep, (str(evidence), 5)).id
    wait_for(lambda: "start 1" in evidence.read_text(), timeout=20)
    # Both workers receive it, also the one without the run.
    answers: Any = current_app.control.revoke(str(running), reply=True, timeout=3)
    assert len(answers) == len(workers)
    assert run_of(running).state == State.RUNNING
    assert current_app.AsyncResult(str(running)).state == states.PENDING
    wait_for(all_final, timeout=20)
    assert current_app.AsyncResult(str(running)).state == states.SUCCESS


# --- The end of a worker -------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_that_is_told_to_end_hands_back_what_does_not_end_in_time(
    system: System, evidence: Path, pool: str
) -> None:
    system.beat()
    old = system.ready_worker(3, "--pool", pool, SHUTDOWN_GRACE_SECONDS="2")
    short = enqueue(tasks.sleep, (str(evidence), 1)).id
    long = enqueue(tasks.sleep, (str(evidence), 30)).id
    once = enqueue(tasks.sleep, (str(evidence), 30), max_attempts=1).id
    wait_for(lambda: len(lines(evidence)) == 3, timeout=20)
    assert old.stop(15) == 0
    Run.objects.filter(pk=long).update(args=f'["{evidence}", 0.1]')
    assert run_of(short).state == State.SUCCEEDED
    assert (run_of(once).state, run_of(once).attempt) == (State.FAILED, 1)
    system.ready_worker(1)
    wait_for(all_final, timeout=20)
    run = run_of(long)
    assert (run.state, run.attempt, run.failures) == (State.SUCCEEDED, 2, 0)


def test_a_worker_whose_children_are_told_to_end_with_it_hands_back_its_runs(
    system: System, evidence: Path
) -> None:
    system.beat()
    old = system.ready_worker(2)
    run_id = enqueue(tasks.sleep, (str(evidence), 30), max_attempts=2).id
    wait_for(lambda: len(lines(evidence)) == 1, timeout=20)
    old.signal(signal.SIGTERM)  # as systemd does, to all processes of a service
    wait_for(lambda: run_of(run_id).attempt == 2, timeout=20)
    assert (run_of(run_id).failures, run_of(run_id).errors) == (0, [])
    assert run_of(run_id).reason == "handed back: its worker had to stop at once"


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_that_must_end_at_once_hands_back_its_runs(
    system: System, evidence: Path, pool: str
) -> None:
    system.beat()
    old = system.ready_worker(2, "--pool", pool)
    ids = [enqueue(tasks.sleep, (str(evidence), 30)).id for _ in range(4)]
    Run.objects.filter(pk__in=ids[::2]).update(options='{"ignore_result": true}')
    wait_for(lambda: len(lines(evidence)) == 2, timeout=20)
    old.signal(signal.SIGQUIT, group=False)
    old.wait(20)
    Run.objects.update(args=f'["{evidence}", 0.1]')
    system.ready_worker(2)
    wait_for(all_final, timeout=20)
    runs = [run_of(run_id) for run_id in ids]
    assert {(run.state, run.failures) for run in runs} == {(State.SUCCEEDED, 0)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_worker_of_one_process_that_must_end_hands_back_its_run(
    system: System, evidence: Path, number: int
) -> None:
    system.beat()
    old = system.ready_worker(1, "--pool", "solo", SHUTDOWN_GRACE_SECONDS="2")
    run_id = enqueue(tasks.sleep, (str(evidence), 30)).id
    wait_for(lambda: len(lines(evidence)) == 1, timeout=20)
    old.signal(number, group=False)
    old.wait(15)
    Run.objects.update(args=f'["{evidence}", 0.1]')
    system.ready_worker(1)
    wait_for(all_final, timeout=20)
    assert (run_of(run_id).state, run_of(run_id).failures) == (State.SUCCEEDED, 0)


@pytest.mark.parametrize("option", ["--max-tasks-per-child=7", "--autoscale=4,1"])
def test_children_that_come_and_go_lose_nothing(
    system: System, evidence: Path, option: str
) -> None:
    system.beat()
    system.ready_worker(2, option)
    enqueue_many(tasks.write, (Call((str(evidence), str(n))) for n in range(200)))
    wait_for(all_final, timeout=40)
    assert sorted(lines(evidence)) == sorted(str(n) for n in range(200))
    assert set(Run.objects.values_list("state", "attempt")) == {(State.SUCCEEDED, 1)}


# --- Load ----------------------------------------------------------------------------------------


def change_limit(system: System, figure: str, limit: float) -> None:
    subprocess.run(
        [sys.executable, "-m", "celery", "-A", "config", "control", "load_limit", figure,
         str(limit)], env=system.env, check=True, timeout=20, stdout=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture
def busy() -> Iterator[None]:
    """A machine that does something, however idle it is."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as spinning:
        yield
        spinning.kill()


@pytest.mark.parametrize(
    ("figure", "limit", "raised"),
    [("memory", 0.001, 0), ("cpu", 0.1, 200), ("load", 0.0001, 10_000)],
)
def test_above_its_limits_a_worker_takes_nothing_and_says_so(
    system: System, evidence: Path, redis_client: redis.Redis, busy: None,
    figure: str, limit: float, raised: float,
) -> None:  # fmt: skip
    others = {f"MAX_{name.upper()}": "100000" for name in ("memory", "cpu", "load")}
    system.beat()
    worker = system.ready_worker(1, **{**others, f"MAX_{figure.upper()}": str(limit)})
    assert worker.said("work_refused"), "before it could take anything"
    run_id = enqueue(tasks.write, (str(evidence), "ran")).id
    wait_for(lambda: run_of(run_id).state == State.QUEUED, timeout=10)
    refuses = f"takes no work: {figure} at"
    pulse = Heartbeat.objects.filter(service="worker", doing__contains=refuses)
    wait_for(pulse.exists, timeout=10)
    queued_at, seen_at = run_of(run_id).queued_at, pulse.get().seen_at
    wait_for(lambda: pulse.get().seen_at > seen_at, timeout=10)  # it lives, and goes on refusing
    assert (run_of(run_id).state, run_of(run_id).queued_at) == (State.QUEUED, queued_at)
    assert redis_client.llen("celery\x06\x166") == 1
    change_limit(system, figure, raised)
    wait_for(lambda: run_of(run_id).state == State.SUCCEEDED, timeout=10)
    assert worker.said("work_taken_again")
    last = f"took 1 in all, the last {tasks.write.name}"
    wait_for(Heartbeat.objects.filter(service="worker", doing__contains=last).exists, timeout=10)


# --- Progress ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_worker_whose_connection_is_dead_but_open_starts_itself_anew(
    system: System, evidence: Path, pool: str
) -> None:
    system.beat()
    with Proxy.before(system.env["REDIS_URL"]) as proxy:
        worker = system.ready_worker(
            2, "--pool", pool, REDIS_URL=proxy.url, STUCK_AFTER_SECONDS="2",
            SHUTDOWN_GRACE_SECONDS="2",
        )  # fmt: skip
        first = enqueue(tasks.write, (str(evidence), "first")).id
        wait_for(lambda: run_of(first).state == State.SUCCEEDED, timeout=20)
        # Without children, it is the consumer's loop that runs the job: first that must end.
        solo = pool == "solo"
        long = enqueue(tasks.sleep, (str(evidence), 5 if solo else 60)).id
        wait_for(lambda: run_of(long).state == State.RUNNING, timeout=20)
        Run.objects.filter(pk=long).update(args=f'["{evidence}", 0.1]')
        proxy.swallow()
        begun = clock.now()
        second = enqueue(tasks.write, (str(evidence), "second")).id
        wait_for(lambda: run_of(second).state == State.SUCCEEDED, timeout=30)
        wait_for(all_final, timeout=20)
    assert worker.said("worker_restarts")
    assert not worker.ended()
    run = run_of(long)
    assert (run.state, run.attempt, run.failures) == (State.SUCCEEDED, 1 if solo else 2, 0)
    assert (clock.now() - begun).total_seconds() < 25


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_one_tasks_rate_limit_is_kept_and_keeps_no_other_waiting(
    system: System, evidence: Path, pool: str
) -> None:
    system.beat()
    system.ready_worker(1, "--pool", pool)
    enqueue_many(tasks.limited, (Call((str(evidence),)) for _ in range(4)))
    wait_for(lambda: lines(evidence), timeout=20)
    others = [enqueue(tasks.write, (str(evidence), "other")).id for _ in range(3)]
    wait_for(lambda: all(run_of(other).state == State.SUCCEEDED for other in others), timeout=5)
    waiting = Run.objects.filter(task=tasks.limited.name, state=State.SCHEDULED)
    assert set(waiting.values_list("reason", flat=True)) == {
        f"waits for its turn: rate_limit '30/m' of task {tasks.limited.name}"
    }
    assert lines(evidence)[1:4] == ["other"] * 3
    wait_for(all_final, timeout=15)
    starts = [float(line.split()[1]) for line in lines(evidence) if line.startswith("limited")]
    gaps = [later - start for start, later in pairwise(starts)]
    assert all(1.9 < gap < 2.6 for gap in gaps), gaps
    assert set(Run.objects.values_list("attempt", flat=True)) == {1}


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_job_that_outlasts_every_limit_of_a_stuck_worker_ends(
    system: System, evidence: Path, pool: str
) -> None:
    system.beat()
    worker = system.ready_worker(
        1, "--pool", pool, "--without-heartbeat", "--without-gossip", "--without-mingle",
        STUCK_AFTER_SECONDS="1", SHUTDOWN_GRACE_SECONDS="1",
    )  # fmt: skip
    long = enqueue(tasks.sleep, (str(evidence), 8)).id
    wait_for(lambda: lines(evidence), timeout=20)
    enqueue(tasks.write, (str(evidence), "next"))
    wait_for(all_final, timeout=20)
    assert (run_of(long).state, run_of(long).attempt) == (State.SUCCEEDED, 1)
    assert not worker.said("worker_restarts")


# --- Waiting for services -----------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_plain_message_whose_end_only_the_parent_sees_ends_no_worker(
    system: System, evidence: Path, pool: str, settings: Settings
) -> None:
    settings.UNTRACKED_TASKS = ["*"]
    system.env["UNTRACKED_TASKS"] = "*"
    with Proxy.before(system.env["DATABASE_URL"]) as proxy:
        worker = system.ready_worker(
            1, "--pool", pool, ACCEPT_UNTRACKED="1", DATABASE_URL=f"{proxy.url}?connect_timeout=1"
        )
        first = tasks.write.apply_async((str(evidence), "first"))
        wait_for(lambda: first.state == states.SUCCESS, timeout=20)
        proxy.cut_off()
        expired = tasks.write.apply_async((str(evidence), "expired"), expires=-5)
        unknown = current_app.signature("tests.jobs.tasks.unheard_of").apply_async()
        done = tasks.write.apply_async((str(evidence), "done"))
        wait_for(lambda: lines(evidence) == ["first", "done"], timeout=20)
        proxy.mend()
        found = {expired: states.REVOKED, unknown: states.FAILURE, done: states.SUCCESS}
        wait_for(lambda: all(one.state == state for one, state in found.items()), timeout=20)
    assert not worker.ended()
    assert worker.stop() == 0


def test_a_worker_with_an_unknown_kind_of_pool_does_not_start(system: System) -> None:
    worker = system.worker(
        1, "--pool", "custom", CELERY_CUSTOM_WORKER_POOL="celery.concurrency.base:BasePool"
    )
    assert worker.wait(20) == 1
    last = worker.output().splitlines()[-1]
    assert last.startswith(
        "truebeat: a worker cannot use the pool celery.concurrency.base:BasePool"
    )


def test_a_worker_that_is_told_to_listen_to_what_is_no_queue_ends_with_a_line(
    system: System,
) -> None:
    worker = system.worker(1, "-Q", "celery,unacked")
    assert worker.wait(20) == 1
    assert "truebeat: queue 'unacked': the broker uses this name itself" in worker.output()


def test_a_renamed_task_runs_what_still_has_its_old_name(system: System, evidence: Path) -> None:
    system.beat()
    system.ready_worker(1)
    run_id = enqueue("tests.jobs.tasks.renamed", (str(evidence),)).id
    Run.objects.filter(pk=run_id).update(task="tests.jobs.tasks.former")
    wait_for(all_final, timeout=20)
    assert (run_of(run_id).state, lines(evidence)) == (State.SUCCEEDED, ["renamed"])


def test_a_worker_with_a_very_long_name_can_write_its_results(
    system: System, evidence: Path
) -> None:
    system.beat()
    system.ready_worker(1, "-n", f"{'w' * 180}@%h")
    run_id = enqueue(tasks.write, (str(evidence), "ran")).id
    wait_for(all_final, timeout=20)
    assert (run_of(run_id).state, run_of(run_id).reason) == (State.SUCCEEDED, "")
