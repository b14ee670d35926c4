"""Any number of beats: no leader, no lock to wait for, and no clock but the database's."""

import signal
from datetime import timedelta
from itertools import cycle, pairwise
from pathlib import Path

import psutil
import pytest
import redis
from django_celery_beat.models import ClockedSchedule, IntervalSchedule, PeriodicTask

from chaos.network import Proxy
from chaos.testbed import faketime, skewed
from scheduling import clock
from scheduling.jobs import enqueue
from scheduling.models import Plan, Run, State
from scheduling.schedules import planning
from tests.jobs import tasks
from tests.scheduling.ledger import no_triggers
from tests.system.processes import System, SystemProcess
from tests.system.test_crashes import all_final, starts
from tests.waiting import wait_for

# A second, which a beat may sleep, and the delay of a busy machine.
SOON = timedelta(seconds=4)


def every_second(evidence: Path, count: int) -> None:
    """Write schedules that are due each second, all at the same instants."""
    rule = IntervalSchedule.objects.create(every=1, period="seconds")
    PeriodicTask.objects.bulk_create(
        PeriodicTask(
            name=f"s{n}", task=tasks.write.name, args=f'["{evidence}"]', interval=rule,
            start_time=clock.now(),
        )
        for n in range(count)
    )  # fmt: skip


def wait(seconds: float) -> None:
    until = clock.now() + timedelta(seconds=seconds)
    wait_for(lambda: clock.now() > until, timeout=seconds + 10)


def stop_schedules() -> None:
    PeriodicTask.objects.update(enabled=False)
    wait_for(lambda: not Plan.objects.filter(next_due_at__isnull=False).exists(), timeout=10)
    wait_for(all_final, timeout=30)


def assert_each_instant_ran_once(evidence: Path) -> None:
    for name in {run.schedule_name for run in Run.objects.all()}:
        for run, later in pairwise(Run.objects.filter(schedule_name=name).order_by("due_at")):
            assert later.due_at - run.due_at == timedelta(seconds=1 + run.coalesced), name
    assert max(starts(evidence).values()) == 1
    assert sum(starts(evidence).values()) == Run.objects.count()
    assert early() == []


def early() -> list[Run]:
    return [run for run in Run.objects.all() if run.started_at and run.started_at < run.run_at]


def latest() -> timedelta:
    """Return by how much the run that was made last after its instant came after it."""
    return max(run.created_at - run.due_at for run in Run.objects.all())


def test_any_of_three_beats_may_die_at_any_instant(system: System, evidence: Path) -> None:
    every_second(evidence, 30)
    begun = clock.now()
    beats = [system.beat() for _ in range(3)]
    for beat in beats:
        beat.wait_until_said("beat: Starting")
    to_start = clock.now() - begun
    system.ready_worker(2)
    wait_for(lambda: Run.objects.filter(state=State.SUCCEEDED).count() > 30, timeout=20)
    before = clock.now()
    # One after the other, at instants that wander through the second. They come faster than a beat
    # starts: for a while no beat runs.
    for place, pause in zip(cycle(range(3)), (0.31, 0.47, 0.13, 0.59, 0.83), strict=False):
        wait(pause)
        beats[place].kill()
        beats[place] = system.beat()
    wait(1)
    stop_schedules()
    assert_each_instant_ran_once(evidence)
    Run.objects.filter(due_at__lt=before).delete()
    assert latest() < to_start + SOON


def test_a_beat_that_freezes_with_rows_locked_holds_them_for_ten_seconds_at_most(
    system: System, evidence: Path
) -> None:
    every_second(evidence, 3)
    frozen = system.beat("tests.system.freezing_beat")
    wait_for(lambda: is_frozen(frozen), timeout=20)
    begun = clock.now()
    system.beat()
    system.ready_worker(1)
    wait_for(lambda: Run.objects.exists(), timeout=15)
    assert clock.now() - begun < timedelta(seconds=12)
    frozen.signal(signal.SIGCONT)
    frozen.wait_until_said("idle-in-transaction timeout")  # then it goes on with another
    wait(2)
    stop_schedules()
    assert not frozen.ended()
    assert not frozen.said("Traceback")
    assert_each_instant_ran_once(evidence)


def test_a_beat_that_freezes_while_it_reads_what_is_due_holds_it_for_ten_seconds_at_most(
    system: System,
) -> None:
    text = "x" * 40_000  # more in all than fits into the sockets' buffers
    PeriodicTask.objects.bulk_create(
        PeriodicTask(
            name=f"s{n}", task=tasks.add.name, args=f'["{text}", "y"]',
            clocked=ClockedSchedule.objects.create(clocked_time=clock.now()), one_off=True,
        )
        for n in range(300)
    )  # fmt: skip
    frozen = system.beat("tests.system.freezing_reader")
    wait_for(lambda: is_frozen(frozen), timeout=20)
    begun = clock.now()
    system.beat()
    added = Run.objects.filter(task=tasks.add.name)  # a schedule of the code may come due as well
    wait_for(lambda: added.count() == 300, timeout=20)
    assert clock.now() - begun < timedelta(seconds=12)
    frozen.signal(signal.SIGCONT)
    frozen.wait_until_said("database_away")  # then it goes on with another connection
    assert not frozen.ended()
    assert not frozen.said("Traceback")


def is_frozen(service: SystemProcess) -> bool:
    return bool(psutil.Process(service.pid).status() == psutil.STATUS_STOPPED)


@pytest.mark.skipif(faketime() is None, reason="libfaketime is not installed")
def test_a_beat_whose_clock_is_an_hour_off_fires_nothing_early_or_late(
    system: System, evidence: Path, redis_client: redis.Redis
) -> None:
    beats = [system.beat(**skewed(hours * 3600)) for hours in (1, -1)]
    for beat in beats:
        beat.wait_until_said("beat: Starting")  # later lateness is not due to the start
    begun = clock.now()
    for name, minutes in (("soon", 0), ("later", 55), ("past", -55)):
        at = begun + timedelta(minutes=minutes, seconds=4)
        PeriodicTask.objects.create(
            name=name, task=tasks.write.name, args=f'["{evidence}", "{name}"]', one_off=True,
            clocked=ClockedSchedule.objects.create(clocked_time=at),
        )  # fmt: skip
    every_second(evidence, 3)
    soon = enqueue(tasks.write, (str(evidence), "asked"), after=timedelta(seconds=3))
    enqueue(tasks.write, (str(evidence), "in an hour"), after=timedelta(minutes=59))
    system.ready_worker(1)
    wait_for(lambda: starts(evidence)["soon"] and starts(evidence)["asked"], timeout=20)
    # A hint that is lost is looked for by the database's clock too.
    lost = enqueue(tasks.write, (str(evidence), "lost"), queue="elsewhere")
    wait_for(lambda: redis_client.delete("elsewhere\x06\x166"), timeout=10)
    wait_for(lambda: redis_client.llen("elsewhere\x06\x166"), timeout=15)
    Run.objects.filter(pk=lost.pk).delete()
    PeriodicTask.objects.update(enabled=False)
    wait_for(lambda: not Plan.objects.filter(next_due_at__isnull=False).exists(), timeout=10)
    ran = starts(evidence)
    assert (ran["soon"], ran["past"], ran["asked"]) == (1, 1, 1)
    assert ran["later"] == ran["in an hour"] == 0
    assert max(ran.values()) == 1
    Run.objects.filter(schedule_name="past").delete()
    Run.objects.filter(started_at__isnull=True).delete()
    assert [
        run for run in Run.objects.all() if run.started_at and run.started_at < run.run_at
    ] == []
    assert latest() < SOON
    asked = Run.objects.get(pk=soon.pk)
    assert asked.queued_at is not None
    assert asked.queued_at - asked.run_at < SOON
    assert not any(beat.ended() for beat in beats)


def test_a_beat_whose_connection_is_dead_but_open_goes_on_with_another(
    system: System, evidence: Path
) -> None:
    with Proxy.before(system.env["DATABASE_URL"]) as proxy:
        beat = system.beat(DATABASE_URL=proxy.url)
        system.ready_worker(1)
        enqueue(tasks.write, (str(evidence), "first"))
        wait_for(all_final, timeout=20)
        proxy.swallow()
        enqueue(tasks.write, (str(evidence), "second"))
        wait_for(all_final, timeout=20)
    assert evidence.read_text().split() == ["first", "second"]
    assert beat.said("database_silent")


def test_a_beat_fires_schedules_that_came_without_triggers_and_is_not_held_up_by_what_has_none(
    system: System, evidence: Path
) -> None:
    rule = IntervalSchedule.objects.create(every=1, period="seconds")
    row = {"task": tasks.write.name, "args": f'["{evidence}"]', "interval": rule}
    gone = [PeriodicTask(name=f"gone {n}", **row) for n in range(planning.BATCH + 1)]
    PeriodicTask.objects.bulk_create(gone)
    Plan.objects.update(needs_plan=False, next_due_at=clock.now())
    with no_triggers():
        PeriodicTask.objects.all()._raw_delete("default")
        PeriodicTask.objects.create(name="restored", **row)
    beat = system.beat()
    wait_for(lambda: Run.objects.filter(schedule_name="restored").exists(), timeout=20)
    beat.wait_until_said("plans_missing").wait_until_said("orphans_removed")
    assert Plan.objects.count() == 1
