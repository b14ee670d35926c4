"""Canvases over real processes: follow-ups go out once, although processes die at a run's end."""

from pathlib import Path
from typing import Any

import pytest
import redis
from celery import chain, chord, group
from celery.result import AsyncResult
from django.db import connection
from pytest_django import Settings

from scheduling.jobs import enqueue
from scheduling.models import UNFINISHED, Origin, Run, State
from tests.jobs import canvas, tasks
from tests.system.processes import System
from tests.waiting import wait_for


def value_of(promised: Any, timeout: float = 30) -> Any:
    return promised.get(timeout=timeout, interval=0.05)


def all_final() -> bool:
    return not Run.objects.filter(state__in=UNFINISHED).exists()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_canvases_of_runs_work_as_celerys_own(
    system: System, evidence: Path, redis_client: redis.Redis, settings: Settings, pool: str
) -> None:
    plus, total, third_time = canvas.plus, canvas.total, canvas.third_time
    untracked = [plus.name, third_time.name]
    system.beat()
    system.ready_worker(2, "--pool", pool, UNTRACKED_TASKS=",".join(untracked))
    note = tasks.write.si(str(evidence), "sorry")
    stepwise = chain(plus.s(1, 2), third_time.s(), plus.s(10)).apply_async(countdown=0.1)
    parts = [third_time.s(5), plus.s(1, 1), canvas.quiet.s(7)]
    summed = chord(parts, total.s()).apply_async(countdown=0.1)
    middle: Any = plus.s(1, 1) | group(plus.s(10), plus.s(20)) | total.s() | plus.s(1)
    middled = middle.apply_async(countdown=0.1)
    deep = chain(plus.s(10), group(plus.s(100), third_time.s()))
    nested: Any = plus.s(1, 1) | group(plus.s(1), deep) | canvas.hear.s()
    nested = nested.apply_async(countdown=0.1)
    replaced = canvas.becomes.apply_async((1, "chord"), countdown=0.1)
    failed = canvas.fail.apply_async(countdown=0.1, link_error=note)
    doomed = chord([plus.s(1, 1), canvas.fail.s()], total.s().on_error(note))
    broken = doomed.apply_async(countdown=0.1)
    # A plain one, of which a step retries: from then on it is rows.
    settings.UNTRACKED_TASKS = untracked
    plain = chain(plus.s(1, 1), third_time.s(), plus.s(5)).apply_async()
    assert [value_of(result) for result in (stepwise, summed, middled, replaced, plain)] == [
        13, 14, 35, 32, 7,
    ]  # fmt: skip
    assert value_of(nested) == [3, [112, 12]]
    ended: list[AsyncResult[Any]] = [AsyncResult(failed.id), AsyncResult(broken.id)]
    for result in ended:
        with pytest.raises(Exception, match="no luck"):
            value_of(result)
    wait_for(all_final, timeout=20)
    assert evidence.read_text() == "sorry\nsorry\n"
    assert redis_client.keys("celery*") == []


@pytest.mark.parametrize("die_at", ["before", "inside"])
def test_what_follows_goes_out_once_with_the_attempt_that_succeeds(
    system: System, evidence: Path, die_at: str
) -> None:
    system.beat()
    system.start(
        "worker", "celery", "-A", "tests.system.dying_worker", "worker", "-c", "2", DIE_AT=die_at
    ).wait_until_said(" ready.")
    parts = [tasks.write.si(str(evidence), str(n)) for n in range(3)]
    body = chain(tasks.write.si(str(evidence), "body"), tasks.write.si(str(evidence), "after"))
    promised = chord(parts, body).apply_async(countdown=0)
    value_of(promised)
    wait_for(all_final, timeout=30)
    assert set(Run.objects.values_list("state", flat=True)) == {State.SUCCEEDED}
    followed = Run.objects.exclude(follow_ups="")
    assert set(followed.values_list("attempt", "failures")) == {(2, 1)}
    assert Run.objects.filter(origin=Origin.FOLLOW_UP).count() == 2
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM django_celery_results_chordcounter")
        assert cursor.fetchone() == (0,)


@pytest.mark.parametrize("how", ["link", "links", "replace"])
def test_what_follows_in_thousands_goes_out_once_while_the_lease_is_kept(
    system: System, evidence: Path, how: str
) -> None:
    system.env["RUN_LEASE_SECONDS"] = "1.5"  # it takes longer, and no lease may cover it
    system.beat()
    worker = system.ready_worker(1)
    part, count = tasks.write.si(str(evidence), "part").set(queue="elsewhere"), 12_000
    if how == "replace":
        made = enqueue(canvas.becomes_many, (count, "elsewhere"), max_attempts=1)
    else:
        links = [part.clone() for _ in range(count)]
        made = enqueue(tasks.add, (1, 2), link=group(links) if how == "link" else links,
                       max_attempts=1)  # fmt: skip
    parts = Run.objects.filter(follows=made.pk)
    wait_for(parts.exists, timeout=60)
    assert parts.count() == count
    made.refresh_from_db()
    assert (made.attempt, made.failures, made.errors) == ((2 if how == "replace" else 1), 0, [])
    assert made.state == (State.SCHEDULED if how == "replace" else State.SUCCEEDED)
    assert not worker.said("run_stopped")
    assert not worker.said("database_silent")
