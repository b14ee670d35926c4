"""A program that can only write to Redis cannot start or end any run."""

import base64
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import current_app
from celery.app.control import Control

from scheduling import health
from scheduling.ids import uuid7
from scheduling.jobs import enqueue
from scheduling.models import Run, State
from scheduling.postgres import identity
from scheduling.runs.hints import Broker, Hint, Lane, message
from tests.jobs import tasks
from tests.system.processes import System
from tests.waiting import wait_for

PAST, FUTURE = "2001-01-01T00:00:00+00:00", "2099-01-01T00:00:00+00:00"


def hint_of(run: Run, **headers: Any) -> dict[str, Any]:
    """Return a hint that was changed after a beat had signed it."""
    made = Hint(run.pk, run.attempt, run.task, run.queue, run.priority, run.options)
    found: dict[str, Any] = json.loads(message(made))
    found["headers"].update(headers)
    return found


def with_body(found: dict[str, Any], *args: Any, **embedded: Any) -> dict[str, Any]:
    body = base64.b64encode(json.dumps([args, {}, embedded]).encode()).decode()
    return {**found, "body": body}


def test_who_writes_to_redis_starts_and_ends_nothing(
    system: System, evidence: Path, redis_client: redis.Redis
) -> None:
    write, path = tasks.write, str(evidence)
    worker = system.ready_worker(2)
    system.beat()
    running = enqueue(tasks.sleep, (path, 5))
    wait_for(lambda: "start 1" in evidence.read_text(), timeout=20)
    waiting = enqueue(tasks.sleep, (path, 0), after=timedelta(seconds=4))
    said = write.s(path, "FORGED")

    def push(*found: dict[str, Any]) -> None:
        redis_client.lpush("celery\x06\x166", *map(json.dumps, found))

    plain = hint_of(running, id=str(uuid7()), root_id=str(uuid7()))
    del plain["headers"]["run_attempt"]
    push(
        # Messages that are made up.
        with_body(plain, path, "FORGED", errbacks=[said], callbacks=[said]),
        with_body({**plain, "headers": {**plain["headers"], "timelimit": [0.01, 0.01],
                   "task": tasks.sleep.name}}, path, 3, errbacks=[said]),
        with_body({**plain, "headers": {**plain["headers"], "task": "no.such.task",
                   "id": str(waiting.pk)}}, errbacks=[said]),
        # Copies of hints, with more in them.
        with_body(hint_of(waiting, eta=FUTURE), callbacks=[said], errbacks=[said]),
        *(hint_of(run, expires=PAST) for run in (running, waiting)),
        *(hint_of(run, retries=99, group="g", ignore_result=True) for run in (running, waiting)),
        with_body(hint_of(running, timelimit=[0.01, 0.01]), errbacks=[said]),
        # A signature for another run.
        hint_of(waiting, id=str(running.pk)), hint_of(running, task=write.name),
    )  # fmt: skip
    # Messages to workers, past the ledger.
    anybody = Control(app=current_app)
    for run in (running, waiting):
        anybody.revoke(str(run.pk))
        anybody.revoke(str(run.pk), terminate=True, signal="SIGKILL")
    push(hint_of(running), hint_of(waiting))
    for run in (running, waiting):
        wait_for(lambda run=run: Run.objects.get(pk=run.pk).finished_at, timeout=20)  # type: ignore[misc]
        after = Run.objects.get(pk=run.pk)
        assert (after.state, after.attempt, after.failures) == (State.SUCCEEDED, 1, 0)
    assert Run.objects.count() == 2
    lines = [line.rsplit(" ", 1)[0] for line in evidence.read_text().splitlines()]
    assert sorted(lines) == ["end 1", "end 1", "start 1", "start 1"]
    assert worker.said("untracked_refused")
    assert worker.said("hint_refused")


def test_hints_of_another_ledger_in_the_same_redis_are_left_to_its_workers(
    system: System,
    evidence: Path,
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(identity, "_known", str(uuid7()))
        for ledger in ("it is there", "it has gone"):
            run = Run(task=tasks.write.name, queue="celery", priority=6)
            if ledger == "it is there":
                Broker().sign_in()
                theirs = str(run.pk)
            else:
                elsewhere.setattr(identity, "_known", str(uuid7()))
            redis_client.lpush("celery\x06\x166", json.dumps(hint_of(run)))
    system.beat().wait_until_said("redis_shared")
    worker = system.ready_worker(1)
    for number in range(3):
        run_id = enqueue(tasks.write, (str(evidence), str(number))).pk
        wait_for(lambda: Run.objects.get(pk=run_id).state == State.SUCCEEDED, timeout=20)  # noqa: B023
    wait_for(lambda: {str(found) for found in Broker().ids_in(Lane("celery", 6))} == {theirs})
    assert worker.output().count("foreign_hint") == 1
    said = "Redis is shared with ledger"
    wait_for(lambda: said in health.what_hurts().get("redis", ""), timeout=30)  # with a heartbeat


def test_hints_of_an_earlier_release_are_pushed_anew(
    system: System, evidence: Path, redis_client: redis.Redis
) -> None:
    made = enqueue(tasks.write, (str(evidence), "once"))
    Run.objects.filter(pk=made.pk).update(state=State.QUEUED, queued_at=made.run_at)
    unsigned = hint_of(made)
    for name in ("run_ledger", "run_signature"):
        del unsigned["headers"][name]
    redis_client.lpush("celery\x06\x166", json.dumps(unsigned))
    worker = system.ready_worker(1).wait_until_said("hint_refused")
    beat = system.beat()
    wait_for(lambda: Run.objects.get().state == State.SUCCEEDED, timeout=30)
    assert beat.said("hints_resent")
    assert evidence.read_text() == "once\n"
    assert not worker.ended()
