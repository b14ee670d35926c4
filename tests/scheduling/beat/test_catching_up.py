"""After a long outage, beat catches up with the missed occurrences, tick by tick."""

import time
from datetime import datetime, timedelta
from typing import Any

import pytest
import redis
from celery import current_app
from django.db.models import Count, Sum

from scheduling import clock
from scheduling.beat import firing
from scheduling.beat.deciding import CATCH_UP_MAX, CATCH_UP_STEP
from scheduling.beat.firing import CATCH_UP_BATCH, fire_due
from scheduling.beat.looking import LONG_AGO
from scheduling.beat.scheduler import Scheduler
from scheduling.execution.finishing import finish
from scheduling.models import Run, State
from scheduling.runs.outcomes import Outcome
from scheduling.schedules import planning
from tests.scheduling.ledger import crontab, run, runs_of, schedule, set_plan

pytestmark = pytest.mark.django_db

MONTH = timedelta(days=30)
MINUTES = 30 * 24 * 60
LONGEST_TICK = 5.0  # seconds; a twentieth of that on an idle machine


@pytest.fixture
def beat(redis_client: redis.Redis, bare_schedules: None) -> Scheduler:
    app: Any = current_app
    return Scheduler(app=app, lazy=True)


def missed_a_month(catch_up: str, **policy: Any) -> tuple[Any, datetime]:
    """Return a minutely schedule that was due first a month ago, and that instant."""
    row = schedule("missed", crontab=crontab(), policy={"catch_up": catch_up, **policy})
    first = clock.now().replace(second=0, microsecond=0) - MONTH
    set_plan(row, first)
    return row, first


def ticks(beat: Scheduler) -> int:
    """Tick until beat is at rest; no tick may take long. Return how many it took."""
    for count in range(1, 30):
        begun = time.monotonic()
        resting = beat.run_once() > 0
        assert time.monotonic() - begun < LONGEST_TICK
        if resting:
            return count
    raise AssertionError("beat did not come to rest")


def hints(client: redis.Redis) -> int:
    lanes = ("celery", *(f"celery\x06\x16{step}" for step in (3, 6, 9)))
    lengths: list[Any] = [client.llen(lane) for lane in lanes]
    return sum(lengths)


class TestAll:
    def test_the_first_tick_fires_a_step_and_does_not_hold_up_the_others(
        self, beat: Scheduler, redis_client: redis.Redis
    ) -> None:
        missed, _ = missed_a_month("all")
        other = schedule("other", crontab=crontab("0", "0"))
        set_plan(other, clock.now() - timedelta(seconds=1))
        beat.run_once()
        assert len(runs_of(missed)) == CATCH_UP_STEP
        (fired,) = runs_of(other)
        assert fired.state == State.QUEUED
        assert hints(redis_client) == 2

    def test_it_stops_at_a_maximum_and_one_row_counts_the_rest(
        self, beat: Scheduler, redis_client: redis.Redis
    ) -> None:
        missed, first = missed_a_month("all")
        ticks(beat)
        runs = runs_of(missed)
        waiting = [one for one in runs if one.state in (State.QUEUED, State.HELD)]
        skipped = [one for one in runs if one.state == State.SKIPPED]
        assert len(waiting) == CATCH_UP_MAX
        assert [one.due_at for one in waiting[:2]] == [first, first + timedelta(minutes=1)]
        assert all(
            one.reason == "missed: 1000 runs of this schedule wait already" for one in skipped
        )
        accounted = len(runs) + sum(one.coalesced for one in runs)
        assert MINUTES + 1 <= accounted <= MINUTES + 2
        assert hints(redis_client) == 1

    def test_one_runs_after_the_other_oldest_first(
        self, beat: Scheduler, redis_client: redis.Redis
    ) -> None:
        missed, first = missed_a_month("all", catch_up_window=MONTH + timedelta(days=1))
        ticks(beat)
        for minute in range(3):
            (one,) = Run.objects.filter(schedule_id=missed.pk, state=State.QUEUED)
            assert one.due_at == first + timedelta(minutes=minute)
            Run.objects.filter(pk=one.pk).update(
                state=State.RUNNING, worker="w1", lease_expires_at=clock.now() + MONTH
            )
            finish(one.pk, 1, Outcome(State.SUCCEEDED))
            ticks(beat)
        assert hints(redis_client) == 4, "no worker took the first three in this test"

    def test_what_is_before_the_window_is_counted_on_one_row(self, beat: Scheduler) -> None:
        missed, first = missed_a_month("all", catch_up_window=timedelta(minutes=10))
        ticks(beat)
        old, *rest = runs_of(missed)
        assert (old.state, old.due_at) == (State.SKIPPED, first)
        assert old.reason == "missed: before the catch-up window"
        assert old.coalesced >= MINUTES - 12
        assert 10 <= len(rest) <= 12


@pytest.mark.parametrize("catch_up", ["latest", "none"])
def test_the_other_policies_need_one_row_or_two(
    beat: Scheduler, redis_client: redis.Redis, catch_up: str
) -> None:
    missed, first = missed_a_month(catch_up)
    ticks(beat)
    runs = Run.objects.filter(schedule_id=missed.pk)
    assert runs.count() <= 3
    assert runs.earliest("due_at").due_at == first
    counted = runs.aggregate(coalesced=Sum("coalesced"))["coalesced"] + runs.count()
    assert MINUTES + 1 <= counted <= MINUTES + 2
    assert hints(redis_client) <= 2


def test_an_unfinished_run_holds_all_that_was_missed(
    beat: Scheduler, redis_client: redis.Redis
) -> None:
    missed, _ = missed_a_month("all")
    run(State.RUNNING, schedule_id=missed.pk, lease_expires_at=clock.now() + MONTH)
    ticks(beat)
    assert hints(redis_client) == 0
    assert Run.objects.filter(schedule_id=missed.pk, state=State.HELD).count() >= CATCH_UP_STEP


class TestManyThatCatchUp:
    @pytest.fixture
    def missed(self, bare_schedules: None) -> list[Any]:
        """Schedules that each missed a month of minutes, and make runs of all of them."""
        minutely, first = crontab(), clock.now().replace(second=0, microsecond=0) - MONTH
        rows = [schedule(f"s{n}", crontab=minutely, policy={"catch_up": "all"}) for n in range(60)]
        for row in rows:
            set_plan(row, first)
        return rows

    def test_a_batch_is_bounded(self, missed: list[Any]) -> None:
        fired = fire_due(LONG_AGO)
        made = Run.objects.count()
        assert fired.plans == len(missed)
        assert fired.behind
        assert len(missed) < made <= CATCH_UP_BATCH
        assert Run.objects.order_by("schedule_id").distinct("schedule_id").count() == len(missed)

    def test_what_is_due_now_is_fired_by_the_second_batch(
        self, missed: list[Any], beat: Scheduler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(firing, "BATCH", 20)
        monkeypatch.setattr(planning, "BATCH", 20)
        monkeypatch.setattr("scheduling.beat.tick.BUSY_MAX", 0.0)
        beat.run_once()
        on_time = schedule("on time", crontab=crontab("0", "0"))
        set_plan(on_time, clock.now() - timedelta(seconds=1))
        beat.run_once()
        assert len(runs_of(on_time)) == 1
        assert len({one.schedule_id for one in Run.objects.all()}) > 20

    def test_all_of_them_catch_up(self, missed: list[Any], beat: Scheduler) -> None:
        for row in missed[:3]:
            set_plan(row, clock.now() - timedelta(hours=9))
        for row in missed[3:]:
            set_plan(row, clock.now() - timedelta(minutes=99))
        ticks(beat)
        counts = Run.objects.values_list("schedule_id").annotate(runs=Count("id"))
        made = dict(counts)
        # One more where a minute begins meanwhile.
        assert all(made[row.pk] in (541, 542) for row in missed[:3])
        assert all(made[row.pk] in (100, 101) for row in missed[3:])
