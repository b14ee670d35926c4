"""Heartbeats: each service writes its own row, and rows of dead services go."""

import os
import tomllib
from collections import Counter
from datetime import timedelta

import pytest
import redis
from celery import current_app
from celery.worker import state as worker_state
from django.conf import settings

from scheduling import __version__, clock, heartbeats
from scheduling.beat.scheduler import Scheduler
from scheduling.broker.intake import Intake
from scheduling.models import Heartbeat
from scheduling.workers.lease_thread import Doing

pytestmark = pytest.mark.django_db


def age(name: str, by: timedelta) -> None:
    Heartbeat.objects.filter(pk=name).update(seen_at=clock.now() - by)


def names() -> set[str]:
    return set(Heartbeat.objects.values_list("pk", flat=True))


def test_it_says_who_and_where_and_what_it_did_last() -> None:
    name = heartbeats.new_name("beat")
    heartbeats.pulse(name, "beat", "fired 3 in all")
    (row,) = Heartbeat.objects.all()
    assert (row.name, row.service, row.pid) == (name, "beat", os.getpid())
    assert (row.host, row.doing) == (os.uname().nodename, "fired 3 in all")
    assert row.version.startswith(f"truebeat {__version__}, celery ")


def test_its_version_is_the_projects() -> None:
    project = tomllib.loads((settings.BASE_DIR / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__


def test_a_worker_says_what_it_does_and_what_it_took_last(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = Counter[str]()
    monkeypatch.setattr(worker_state, "total_count", begun)
    intake = Intake()
    doing = Doing(intake)
    assert doing.words(0) == "runs 0; took 0 in all"
    begun.update({"a.tasks.one": 2})
    assert doing.words(1) == "runs 1; took 2 in all, the last a.tasks.one"
    begun.update({"a.tasks.two": 1})
    assert doing.words(0) == "runs 0; took 3 in all, the last a.tasks.two"
    begun.update({"a.tasks.one": 1})
    assert doing.words(0) == "runs 0; took 4 in all, the last a.tasks.one"
    assert doing.words(0) == "runs 0; took 4 in all, the last a.tasks.one"
    intake.close("memory", "memory at 91%")
    assert doing.words(0).startswith("takes no work: memory at 91%; runs 0; took 4 in all")


def test_a_later_pulse_keeps_the_start_and_moves_the_rest() -> None:
    heartbeats.pulse("b", "beat", "first")
    begun = Heartbeat.objects.get().started_at
    age("b", timedelta(minutes=1))
    heartbeats.pulse("b", "beat", "second")
    row = Heartbeat.objects.get()
    assert (row.started_at, row.doing) == (begun, "second")
    assert row.seen_at >= begun


def test_two_that_start_in_one_process_have_two_names() -> None:
    assert heartbeats.new_name("beat") != heartbeats.new_name("beat")


def test_one_that_has_not_been_seen_for_a_while_is_not_alive() -> None:
    for name in ("a", "b"):
        heartbeats.pulse(name, "worker", "")
    age("b", heartbeats.STALE + timedelta(seconds=1))
    assert heartbeats.alive()["worker"].alive == 1
    assert heartbeats.alive("elsewhere") == {}


def test_beat_prunes_the_dead_after_a_day_and_not_before(redis_client: redis.Redis) -> None:
    for name in ("just dead", "long dead"):
        heartbeats.pulse(name, "beat", "")
    age("just dead", heartbeats.FORGOTTEN - timedelta(minutes=1))
    age("long dead", heartbeats.FORGOTTEN + timedelta(minutes=1))
    Scheduler(app=current_app, lazy=True).run_once()
    assert "just dead" in names()
    assert "long dead" not in names()
    assert any(name.startswith("beat@") for name in names())


def test_an_orderly_end_takes_the_row_along() -> None:
    heartbeats.pulse("w", "worker", "")
    heartbeats.farewell("w")
    assert names() == set()
