"""The cost of a look while Postgres cannot remove dead rows; a narrow look still finds all work.

Rows that a test's own transaction has changed stay like rows that an old snapshot sees: their
entries stay in every index.
"""

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
import redis
from celery import current_app
from django.db import connection

from scheduling import clock
from scheduling.beat import lanes, looking
from scheduling.beat.lanes import KNOWN_LANES, WAITING_LANES, Lanes
from scheduling.beat.looking import LOOK_NARROWLY, Look, Lookout, everywhere, pages_read
from scheduling.beat.scheduler import Scheduler
from scheduling.beat.slices import CUT_OFF, SLOW_ONES, Reach, Rests, Slices
from scheduling.execution.finishing import finish
from scheduling.models import Failure, Plan, Priority, Run, State
from scheduling.runs.enqueueing import enqueue
from scheduling.runs.hints import Lane, list_key
from scheduling.runs.outcomes import Outcome
from tests.jobs.tasks import add
from tests.scheduling.ledger import run, schedule, set_plan
from tests.waiting import wait_for

pytestmark = pytest.mark.django_db

MEDIUM = Lane("celery", Priority.MEDIUM)
HOUR = timedelta(hours=1)
PASSED = 3000
MOVES = (
    "state = 'scheduled'",
    "state = 'queued', queued_at = %(at)s",
    "state = 'running', lease_expires_at = %(at)s",
    "state = 'succeeded', lease_expires_at = NULL, finished_at = now()",
)


def let_pass(count: int) -> None:
    """Let runs pass through all states, an hour ago; and failures, and edits of schedules."""
    at = clock.now() - HOUR
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO scheduling_run (id, origin, task, queue, schedule_id, due_at, run_at,"
            " expires_at, deadline, state) SELECT gen_random_uuid(), 'adhoc', 't', 'celery', n,"
            " %(at)s, %(at)s, %(at)s, %(at)s, 'held' FROM generate_series(1, %(count)s) n",
            {"at": at, "count": count},
        )
        for move in MOVES:
            sql = f"UPDATE scheduling_run SET {move} WHERE state <> 'succeeded'"  # noqa: S608
            cursor.execute(sql, {"at": at})
    Failure.objects.bulk_create(failure(at, n) for n in range(count))
    Failure.objects.all().delete()
    row = schedule()
    for minute in range(count // 10):
        set_plan(row, at + timedelta(seconds=minute), needs_plan=True)
    set_plan(row, None)


def failure(noted_at: datetime, number: int = 0) -> Failure:
    return Failure(
        run_id=f"00000000-0000-0000-0000-{number:012}", task="t", exception="Error", place="",
        error="", schedule_name="", noted_at=noted_at,
    )  # fmt: skip


def narrow(lookout: Lookout) -> Lookout:
    """Make a lookout look narrowly, and do so for the first time."""
    lookout.look()
    lookout.lanes.look()
    lookout.lanes.narrow, lookout._wide_at = True, float("inf")
    lookout.look()
    lookout.lanes.look()
    return lookout


@pytest.mark.usefixtures("bare_runs", "bare_schedules")
class TestWhatPassedUnderAnOldSnapshot:
    def test_a_narrow_look_does_not_read_it(self) -> None:
        let_pass(PASSED)
        lookout = narrow(Lookout())
        assert pages_read(LOOK_NARROWLY, everywhere()) > 500
        parameters = lookout._parameters(lookout.lows, lanes.FOREVER)
        assert pages_read(LOOK_NARROWLY, parameters) < 50

    def test_nor_does_a_narrow_look_at_lanes(self) -> None:
        let_pass(PASSED)
        known = narrow(Lookout()).lanes
        assert pages_read(WAITING_LANES, {}) > 100
        assert known._seen is not None
        since = lanes._between({MEDIUM: known._seen}, known._seen, lanes.FOREVER)
        assert pages_read(KNOWN_LANES, since) < 50

    @pytest.mark.parametrize("pages", [1, looking.MANY_PAGES])
    def test_slow_looks_become_narrow_where_they_read_much_and_not_on_a_busy_machine(
        self, monkeypatch: pytest.MonkeyPatch, pages: int
    ) -> None:
        lookout = Lookout()
        slow = looking.LOOK.replace("EXISTS", "pg_sleep(0.01) IS NULL OR EXISTS", 1)
        monkeypatch.setattr(looking, "LOOK", slow)
        monkeypatch.setattr(looking, "MANY_PAGES", pages)
        monkeypatch.setattr(looking, "SLOW_FOR", 0.0)
        for _ in range(SLOW_ONES):
            assert not lookout.narrow
            lookout.look()
        assert lookout.narrow == (pages == 1)

    def test_and_wide_again_when_it_is_gone(self) -> None:
        lookout = narrow(Lookout())
        lookout._wide_at = 0.0
        wait_for(lambda: lookout.look() and not lookout.narrow)


def expired() -> None:
    run(expires_at=clock.now() - HOUR)


def lost() -> None:
    run(State.RUNNING, lease_expires_at=clock.now() - HOUR)


def queued_long_ago() -> None:
    run(State.QUEUED, queued_at=clock.now() - HOUR)


def past_its_deadline() -> None:
    run(deadline=clock.now() - HOUR)


def near_its_deadline() -> None:
    run(deadline=clock.now() + timedelta(seconds=20))


def failed() -> None:
    failure(clock.now() - HOUR).save()


def edited() -> None:
    set_plan(schedule(), None, needs_plan=True, plan_from=clock.now() - HOUR)


def overdue() -> None:
    set_plan(schedule(), clock.now() - HOUR)


FOUND: dict[Callable[[], None], Callable[[Look], bool]] = {
    expired: lambda look: look.expired,
    lost: lambda look: look.leases_lost,
    queued_long_ago: lambda look: look.hints_old,
    past_its_deadline: lambda look: look.deadlines,
    near_its_deadline: lambda look: look.deadlines,
    failed: lambda look: look.failed,
    edited: lambda look: look.to_plan,
    overdue: lambda look: look.next_due_in is not None and look.next_due_in < -1,
}


@pytest.mark.usefixtures("bare_runs", "bare_schedules")
class TestANarrowLook:
    @pytest.mark.parametrize("write", FOUND, ids=lambda write: write.__name__)
    def test_it_finds_what_lies_before_it_in_slices(self, write: Callable[[], None]) -> None:
        lookout = narrow(Lookout())
        write()
        wait_for(lambda: FOUND[write](lookout.look()))
        assert FOUND[write](lookout.look()), "and does not lose sight of it"

    def test_a_lane_with_work_is_found_whatever_its_time(self) -> None:
        lookout = narrow(Lookout())
        run(queue="late")
        wait_for(lambda: lookout.look() and "late" in {lane.queue for lane in lookout.lanes.due})
        assert Lane("late", Priority.MEDIUM) in lookout.lanes.look().due

    def test_what_comes_due_is_found_at_once(self) -> None:
        known = narrow(Lookout()).lanes
        soon = run(queue="soon", run_at=clock.now() + timedelta(seconds=0.2))
        found = known.look()
        assert not found.due
        assert found.next_in is not None
        assert found.next_in <= 0.2
        wait_for(lambda: Lane("soon", Priority.MEDIUM) in known.look().due)
        soon.delete()
        assert not known.look().due

    def test_a_ring_says_how_far_back_to_look(self) -> None:
        lookout = narrow(Lookout())
        run(run_at=clock.now() - timedelta(minutes=1))
        assert not lookout.lanes.look().due
        lookout.heard(61)
        assert MEDIUM in lookout.lanes.look().due

    def test_a_lane_whose_runs_somebody_holds_is_not_lost_sight_of(self) -> None:
        known = narrow(Lookout()).lanes
        held = run()
        known.add(MEDIUM, held.run_at)
        assert [known.look().due for _ in range(3)] == [{MEDIUM: held.run_at}] * 3

    def test_many_lanes_with_nothing_due_cost_it_nothing(self) -> None:
        Run.objects.bulk_create(
            Run(task="t", queue=f"q{n}", origin="adhoc", due_at=clock.now(),
                run_at=clock.now() + HOUR)
            for n in range(PASSED)
        )  # fmt: skip
        known = narrow(Lookout()).lanes
        assert pages_read(WAITING_LANES, {}) > PASSED
        since = lanes._between({}, known._seen, lanes.FOREVER)
        assert pages_read(KNOWN_LANES, since) < 50


@pytest.fixture
def beat(redis_client: redis.Redis, bare_runs: None, bare_schedules: None) -> Scheduler:
    app: Any = current_app
    scheduler = Scheduler(app=app, lazy=True)
    scheduler.run_once()
    narrow(scheduler.work.lookout)
    return scheduler


class TestABeatThatLooksNarrowly:
    def test_it_publishes_what_is_enqueued(
        self, beat: Scheduler, redis_client: redis.Redis
    ) -> None:
        for _ in range(3):
            enqueue(add, [1, 2])
            beat.run_once()
        assert redis_client.llen(list_key(MEDIUM)) == 3

    def test_it_publishes_what_it_fires_though_it_came_due_long_ago(
        self, beat: Scheduler, redis_client: redis.Redis
    ) -> None:
        row = schedule()
        beat.run_once()
        set_plan(row, clock.now() - HOUR)
        wait_for(lambda: beat.run_once() >= 0 and redis_client.llen(list_key(MEDIUM)) == 1)

    def test_it_catches_up_without_a_pause(self, beat: Scheduler) -> None:
        row = schedule(policy={"catch_up": "all", "overlap": "allow"})
        beat.run_once()
        set_plan(row, clock.now() - 2 * 365 * 24 * HOUR)
        wait_for(lambda: beat.run_once() >= 0 and bool(Run.objects.exists()))
        for _ in range(5):
            beat.run_once()
        assert Plan.objects.filter(schedule=row, next_due_at__gt=clock.now()).exists()

    def test_it_publishes_what_it_raises(self, beat: Scheduler, redis_client: redis.Redis) -> None:
        run(State.QUEUED, run_at=clock.now() - HOUR, deadline=clock.now())
        front = Lane("celery", Priority.FRONT)
        beat.run_once()
        assert redis_client.llen(list_key(front)) == 1

    def test_it_publishes_what_the_end_of_another_lets_go(
        self, beat: Scheduler, redis_client: redis.Redis
    ) -> None:
        first = run(State.RUNNING, schedule_id=7, attempt=1)
        run(State.HELD, schedule_id=7, run_at=clock.now() - HOUR)
        wait_for(lambda: beat.run_once() > 0)
        finish(first.pk, 1, Outcome(State.SUCCEEDED))
        beat.work.lookout.heard(HOUR.total_seconds() + 1)  # as the ring says
        beat.run_once()
        assert redis_client.llen(list_key(MEDIUM)) == 1

    def test_it_lets_go_of_what_nobody_else_does(
        self, beat: Scheduler, redis_client: redis.Redis
    ) -> None:
        beat.work.recovery.held.narrow = True
        run(State.HELD, schedule_id=7, run_at=clock.now() - HOUR)
        wait_for(lambda: beat.run_once() >= 0 and redis_client.llen(list_key(MEDIUM)) == 1)


class TestSlices:
    def passed(self, slices: Slices, step: Callable[[], None] = lambda: None) -> list[Any]:
        found = []
        for piece in slices.go_back(60):
            found.append(piece)
            slices._credit = 1.0
            step()
        return found

    def test_they_cover_everything_without_a_gap(self) -> None:
        pieces = self.passed(Slices(0, 10**15, 10))
        assert pieces[0][1] is None
        assert pieces[-1][0] is None
        assert [low for low, _ in pieces[:-1]] == [high for _, high in pieces[1:]]
        assert len(pieces) < 60

    def test_the_way_has_an_end_though_slices_are_cut_off(self) -> None:
        slices = Slices(0, 10**6, 1)
        widths = list[int]()
        for low, high in slices.go_back(60):
            slices._credit = 1.0
            widths.append((10**6 if high is None else high) - (low or 0))
            if widths[-1] > 10 * slices.patience / CUT_OFF:
                slices.cut_off()
        assert slices.cost is not None
        assert len(widths) < 4 * 300 * 14

    def test_one_that_is_cut_off_begins_again_and_is_narrower(self) -> None:
        slices = Slices(0, 1000, 512)
        pieces = list[tuple[int | None, int | None]]()
        for low, high in slices.go_back(60):
            slices._credit = 1.0
            pieces.append((low, high))
            if (1000 if high is None else high) - (low or 0) > 70:
                slices.cut_off()
        assert pieces[:2] == [(488, None), (872, None)]
        done = [
            (low, high)
            for low, high in pieces
            if (1000 if high is None else high) - (low or 0) <= 70
        ]
        assert [low for low, _ in done[:-1]] == [high for _, high in done[1:]]
        assert done[-1][0] is None

    def test_the_narrowest_one_gets_more_time_until_it_is_done(self) -> None:
        slices = Slices(0, 100, 1)
        given = list[float]()
        for _ in slices.go_back(60):
            slices._credit = 1.0
            given.append(slices.patience)
            if len(given) < 4:
                slices.cut_off()
        assert given[:4] == [CUT_OFF, 2 * CUT_OFF, 4 * CUT_OFF, 8 * CUT_OFF]
        assert given[4:7] == [4 * CUT_OFF, 2 * CUT_OFF, CUT_OFF]

    def test_they_take_a_tenth_of_the_time(self) -> None:
        slices = Slices(0, 10**15, 1)
        slices._credit = 0.001
        for _ in slices.go_back(60):
            time.sleep(0.01)
        assert list(slices.go_back(60)) == []

    def test_rings_without_end_do_not_keep_them_from_the_beginning_of_time(self) -> None:
        slices = Slices(0, 10**6, 1)
        for _ in range(30):
            slices.begin_again()
            slices._credit = 1.0
            next(iter(slices.go_back(0)))
            list(slices.go_back(0))
        assert slices.cost is not None


class TestReach:
    def test_a_look_that_is_cut_off_is_followed_by_parts(self) -> None:
        reach = Reach(0, 9)
        for _ in reach.look():
            time.sleep(0.06)
            reach.cut_off()
        assert reach.narrow

    def test_all_is_looked_at_as_a_whole_while_that_is_quick(self) -> None:
        assert list(Reach(0, 9).look()) == [(0, 9)]

    def test_and_else_in_parts(self) -> None:
        reach = Reach(0, 9)
        for _ in range(SLOW_ONES):
            for _ in reach.look():
                time.sleep(0.06)
        assert reach.narrow
        parts = set[tuple[int, int]]()

        def in_parts() -> bool:
            parts.update(reach.look())
            return not reach.narrow

        wait_for(in_parts)
        assert min(low for low, _ in parts) == 0
        assert max(high for _, high in parts) == 9


def test_a_step_that_takes_long_for_nothing_rests_a_while() -> None:
    rests = Rests()
    assert rests.after("quick", lambda: 0) == 0
    assert rests.over("quick")

    def slow(done: int) -> int:
        time.sleep(0.01)
        return done

    assert rests.after("at work", lambda: slow(1)) == 1
    assert rests.over("at work")
    rests.after("in vain", lambda: slow(0))
    assert not rests.over("in vain")
    wait_for(lambda: rests.over("in vain"))


def test_lanes_that_nothing_is_known_of_are_all_looked_at() -> None:
    made = run()
    assert Lanes().look().due == {MEDIUM: made.run_at}
