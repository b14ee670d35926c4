"""One child has a run at a time, also if its row is locked or the ledger's clock is stepped."""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
import redis
from django.db import connection
from environ import Env

from chaos.testbed import SteppedPostgres, faketime
from scheduling.jobs import enqueue
from scheduling.models import Run, State
from scheduling.runs.hints import Broker, Hint
from tests.jobs import tasks
from tests.scheduling.ledger import is_blocked, second_connection
from tests.system.looks import all_final, lines, run_of
from tests.system.processes import System
from tests.waiting import wait_for


@contextmanager
def locked(run_id: UUID) -> Iterator["psycopg.Connection[object]"]:
    """Hold a run's row in another transaction."""
    with second_connection() as other:
        other.execute("SELECT FROM scheduling_run WHERE id = %s FOR UPDATE", [run_id])
        yield other


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_run_whose_row_is_locked_for_longer_than_a_lease_is_at_work_once(
    system: System, evidence: Path, tmp_path: Path, pool: str
) -> None:
    system.beat()
    worker = system.ready_worker(2, "--pool", pool)
    run_id = enqueue(tasks.tick, (str(evidence), 30)).id
    wait_for(lambda: "at 1" in lines(evidence), timeout=20)
    (neighbour := tmp_path / "neighbour").touch()
    other = enqueue(tasks.sleep, (str(neighbour), 7)).id
    wait_for(lambda: lines(neighbour), timeout=20)
    with locked(run_id) as holder:
        worker.wait_until_said("run_stopped" if pool == "prefork" else "worker_restarts")
        holder.execute("SELECT pg_sleep(1.5)")  # its lease is out by now
        holder.execute("UPDATE scheduling_run SET args = %s WHERE id = %s",
                       [f'["{evidence}", 0.5]', run_id])  # fmt: skip
        holder.commit()
    wait_for(all_final, timeout=20)
    assert [line for line, _ in groupby(lines(evidence))] == ["at 1", "at 2"]
    assert run_of(run_id).state == State.SUCCEEDED
    assert run_of(other).attempt == (1 if pool == "prefork" else 2), "it had its lease all along"
    assert run_of(other).failures == 0


def test_a_job_that_ends_while_its_row_is_locked_has_succeeded(
    system: System, evidence: Path
) -> None:
    system.beat()
    worker = system.ready_worker(2)
    run_id = enqueue(tasks.sleep, (str(evidence), 0.5), max_attempts=1).id
    wait_for(lambda: lines(evidence), timeout=20)
    with locked(run_id) as holder:
        worker.wait_until_said("run_stopped")  # the child has nothing to do but to wait
        holder.execute("SELECT pg_sleep(1.5)")
    wait_for(all_final, timeout=20)
    assert (run_of(run_id).state, run_of(run_id).attempt) == (State.SUCCEEDED, 1)
    assert Counter(line.split()[0] for line in lines(evidence)) == {"start": 1, "end": 1}


def test_a_child_that_dies_over_a_second_hint_ends_nobody_elses_run(
    system: System, evidence: Path, redis_client: redis.Redis
) -> None:
    system.env["RUN_LEASE_SECONDS"] = "30"
    system.beat()
    worker = system.ready_worker(2)
    run_id = enqueue(tasks.sleep, (str(evidence), 4), max_attempts=1).id
    wait_for(lambda: lines(evidence), timeout=20)
    at_work = int(lines(evidence)[0].split()[2])
    refused = next(pid for pid in children(worker.pid) if pid != at_work)
    run = run_of(run_id)
    with second_connection() as other:
        other.execute("LOCK TABLE scheduling_run IN EXCLUSIVE MODE")  # so that it has to wait
        Broker().push([Hint(run.pk, 1, run.task, run.queue, run.priority, run.options)])
        wait_for(is_blocked, timeout=10)
        os.kill(refused, signal.SIGKILL)
        worker.wait_until_said("WorkerLostError")
    wait_for(all_final, timeout=20)
    assert (run_of(run_id).state, run_of(run_id).reason) == (State.SUCCEEDED, "")


@pytest.fixture
def clocked(system: System, tmp_path: Path) -> Iterator[SteppedPostgres]:
    """A ledger of its own, whose clock can be stepped; Django here uses it too."""
    original = connection.settings_dict.copy()
    connection.close()
    server = SteppedPostgres(tmp_path / "postgres", durable=False)
    server.start()
    try:
        system.env["DATABASE_URL"] = server.url
        connection.settings_dict.update(Env.db_url_config(server.url))
        migrate = system.start("migrate", "django", "migrate", "--verbosity", "0")
        assert migrate.wait(60) == 0, migrate.output()
        yield server
    finally:
        connection.close()
        connection.settings_dict.clear()
        connection.settings_dict.update(original)
        server.stop()


@pytest.mark.skipif(faketime() is None, reason="libfaketime is not installed")
def test_a_step_of_the_ledgers_clock_starts_nothing_twice_and_leaves_nothing_behind(
    system: System, evidence: Path, tmp_path: Path, clocked: SteppedPostgres
) -> None:
    beat, other = system.beat(), system.beat()
    worker, doomed = system.ready_worker(1), system.ready_worker(1, "-Q", "doomed")
    run_id = enqueue(tasks.tick, (str(evidence), 9), max_attempts=1).id
    wait_for(lambda: "at 1" in lines(evidence), timeout=20)
    clocked.step(60)
    for one in (beat, other):
        one.wait_until_said("clock_stepped")
    wait_for(all_final, timeout=20)
    assert (run_of(run_id).state, run_of(run_id).attempt) == (State.SUCCEEDED, 1)
    assert set(lines(evidence)) == {"at 1"}

    run_id = enqueue(tasks.tick, (str(evidence), 6)).id
    lost = enqueue(tasks.sleep, (str(tmp_path / "lost"), 60), queue="doomed").id
    waits = enqueue(tasks.write, (str(tmp_path / "waits"), "ran"), queue="later").id
    wait_for(lambda: (tmp_path / "lost").exists(), timeout=20)
    wait_for(lambda: run_of(run_id).state == State.RUNNING, timeout=20)
    wait_for(lambda: run_of(waits).state == State.QUEUED, timeout=10)
    Run.objects.filter(pk=lost).update(args=f'["{tmp_path / "lost"}", 0.1]')
    doomed.kill()
    begun = time.monotonic()
    clocked.step(0)
    system.ready_worker(2, "-Q", "doomed,later")
    wait_for(all_final, timeout=40)
    assert time.monotonic() - begun < 30, "none waits until the clock has come by again"
    assert {(run.state, run.attempt) for run in map(run_of, (run_id, waits))} == {
        (State.SUCCEEDED, 1)
    }
    assert (run_of(lost).state, run_of(lost).attempt) == (State.SUCCEEDED, 2)
    assert not worker.ended()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
