"""Ticks of beat in this process: the work of each, and the cost of a tick without work."""

import os
import signal
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
import redis
from celery import current_app
from django.db import OperationalError, connection
from django.db.backends.utils import CursorWrapper
from django_celery_beat.models import ClockedSchedule, PeriodicTask
from pytest_django import Settings

from config.embedded import RedisServer
from scheduling import clock, heartbeats
from scheduling.beat import dispatch, firing, lost_leases, publisher, tick
from scheduling.beat.lanes import WAITING_LANES
from scheduling.beat.looking import LONG_AGO, LOOK, everywhere
from scheduling.beat.scheduler import Scheduler
from scheduling.execution import finishing
from scheduling.models import UNFINISHED, Plan, Priority, Run, State
from scheduling.postgres import silence
from scheduling.runs.outcomes import Outcome
from scheduling.schedules import from_code, planning
from scheduling.tasks import alert
from tests.jobs.tasks import add
from tests.scheduling.ledger import (
    ADD,
    crontab,
    in_thread,
    interval,
    run,
    runs_of,
    schedule,
    second_connection,
    set_plan,
    write_successes,
)
from tests.waiting import wait_for


@pytest.fixture
def scheduler(redis_client: redis.Redis, bare_schedules: None) -> Scheduler:
    return make()


def make() -> Scheduler:
    app: Any = current_app
    return Scheduler(app=app, lazy=True)


def settle(scheduler: Scheduler) -> None:
    """Tick until there is nothing left to do at once."""
    for _ in range(50):
        if scheduler.run_once() > 0:
            return
    raise AssertionError("beat did not come to rest")


def many(count: int) -> None:
    """Write schedules that share a rule and are due in a hundred days."""
    template = schedule("many", task="t")
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO django_celery_beat_periodictask (name, task, args, kwargs, headers,"
            " one_off, enabled, total_run_count, date_changed, description, crontab_id)"
            " SELECT 'many ' || n, task, args, kwargs, headers, one_off, enabled, 0, now(), '',"
            " crontab_id FROM django_celery_beat_periodictask, generate_series(2, %s) n"
            " WHERE id = %s", [count, template.pk],
        )  # fmt: skip
    Plan.objects.update(
        needs_plan=False, next_due_at=clock.now() + timedelta(days=100), plan_from=LONG_AGO
    )


def let_them_come_due() -> None:
    """Make the schedules of `many` a herd that was due a second ago."""
    Plan.objects.filter(schedule__task="t").update(next_due_at=clock.now() - timedelta(seconds=1))


def many_runs(count: int, **columns: Any) -> None:
    """Write runs that are alike."""
    at = clock.now() - timedelta(minutes=1)
    alike = {"task": "t", "queue": "celery", "origin": "adhoc", "due_at": at, "run_at": at}
    Run.objects.bulk_create([Run(**alike, **columns) for _ in range(count)])


@pytest.mark.django_db
class TestATick:
    def test_a_schedule_is_planned_fired_and_published(
        self, scheduler: Scheduler, redis_client: redis.Redis
    ) -> None:
        row = schedule()
        settle(scheduler)
        set_plan(row, clock.now() - timedelta(milliseconds=5))
        settle(scheduler)
        (made,) = runs_of(row)
        assert made.state == State.QUEUED
        assert redis_client.llen("celery\x06\x166") == 1

    def test_a_beat_that_has_nothing_to_do_rehearses_what_comes_first(
        self, scheduler: Scheduler, redis_client: redis.Redis
    ) -> None:
        row = schedule()
        settle(scheduler)
        with connection.cursor() as cursor:
            cursor.execute("SELECT statement FROM pg_prepared_statements")
            prepared = " ".join(statement for (statement,) in cursor.fetchall())
        assert "INSERT INTO scheduling_run" in prepared
        assert not Run.objects.exists()
        assert not redis_client.llen("celery\x06\x166")
        set_plan(row, clock.now() - timedelta(milliseconds=5))
        scheduler.run_once()
        assert redis_client.llen("celery\x06\x166") == 1

    def test_what_is_due_already_does_not_wait_for_a_rehearsal(self, scheduler: Scheduler) -> None:
        row = schedule()
        set_plan(row, clock.now() - timedelta(milliseconds=5))
        scheduler.run_once()
        assert [made.state for made in runs_of(row)] == [State.QUEUED]
        assert scheduler.work.rehearsed is None

    def test_in_a_lane_that_it_has_fired_into_before_one_tick_does_it(
        self, scheduler: Scheduler, redis_client: redis.Redis
    ) -> None:
        row = schedule(queue="mails")
        settle(scheduler)
        for count in 1, 2:
            set_plan(row, clock.now() - timedelta(milliseconds=5))
            if count == 1:
                settle(scheduler)
            else:
                scheduler.run_once()
            assert [made.state for made in runs_of(row)] == [State.QUEUED] * count
            assert redis_client.llen("mails\x06\x166") == count

    def test_it_remembers_so_many_lanes(self, scheduler: Scheduler) -> None:
        for n in range(publisher.LANES_MAX + 5):
            row = schedule(f"n{n}", queue=f"q{n}")
            set_plan(row, clock.now() - timedelta(milliseconds=5))
        settle(scheduler)
        assert len(scheduler.work.publisher.lanes) == publisher.LANES_MAX
        assert Run.objects.filter(state=State.QUEUED).count() == publisher.LANES_MAX + 5

    def test_a_clocked_schedule_in_the_past_fires_in_the_tick_that_plans_it(
        self, scheduler: Scheduler
    ) -> None:
        rule = ClockedSchedule.objects.create(clocked_time=clock.now() - timedelta(seconds=5))
        row = schedule(clocked=rule, one_off=True)
        scheduler.run_once()
        assert len(runs_of(row)) == 1
        row.refresh_from_db()
        assert not row.enabled

    def test_with_nothing_to_do_it_may_sleep_a_second(self, scheduler: Scheduler) -> None:
        settle(scheduler)
        assert scheduler.run_once() == tick.SLEEP_MAX

    def test_it_sleeps_no_longer_than_until_the_next_instant(self, scheduler: Scheduler) -> None:
        row = schedule()
        settle(scheduler)
        set_plan(row, clock.now() + timedelta(seconds=0.5))
        assert 0 < scheduler.run_once() <= 0.5

    def test_it_sleeps_no_longer_than_until_a_run_may_start(self, scheduler: Scheduler) -> None:
        settle(scheduler)
        run(run_at=clock.now() + timedelta(seconds=0.5))
        assert 0 < scheduler.run_once() <= 0.5

    def test_it_wakes_for_the_second_run_of_a_lane_too(self, scheduler: Scheduler) -> None:
        settle(scheduler)
        run()
        run(run_at=clock.now() + timedelta(seconds=0.5))
        assert scheduler.run_once() <= 0.5

    def test_expired_runs_end(self, scheduler: Scheduler) -> None:
        made = run(expires_at=clock.now())
        scheduler.run_once()
        made.refresh_from_db()
        assert made.state == State.EXPIRED

    def test_lost_leases_are_recovered(self, scheduler: Scheduler, settings: Settings) -> None:
        settings.RUN_LEASE = timedelta(milliseconds=10)
        made = run(State.RUNNING, lease_expires_at=clock.now())

        def attempt() -> int:
            scheduler.run_once()
            made.refresh_from_db()
            return made.attempt

        wait_for(lambda: attempt() == 2, message="a second attempt")

    @pytest.mark.parametrize("kind", ["expired", "lost"])
    def test_more_repairs_than_a_batch_holds_follow_at_once(
        self, scheduler: Scheduler, settings: Settings, kind: str
    ) -> None:
        settings.RUN_LEASE = timedelta(milliseconds=10)
        past = clock.now() - timedelta(minutes=1)
        if kind == "expired":
            many_runs(1200, expires_at=past)
        else:
            many_runs(1200, state=State.RUNNING, lease_expires_at=past, max_attempts=1)
        settle(scheduler)
        assert not Run.objects.filter(state__in=UNFINISHED).exclude(task=alert.name).exists()

    def test_held_runs_whose_blocker_is_gone_are_released(self, scheduler: Scheduler) -> None:
        made = run(State.HELD, schedule_id=7)
        scheduler.run_once()
        made.refresh_from_db()
        assert made.state != State.HELD

    def test_a_run_that_replaces_one_whose_lease_expires_is_released(
        self, scheduler: Scheduler, settings: Settings
    ) -> None:
        settings.RUN_LEASE = timedelta(milliseconds=10)
        end = clock.now() + timedelta(seconds=0.3)
        old = run(
            State.RUNNING, schedule_id=7, cancel_requested_by="schedule 7: replaced",
            lease_expires_at=end,
        )  # fmt: skip
        new = run(State.HELD, schedule_id=7, due_at=old.due_at + timedelta(minutes=1))
        scheduler.run_once()
        new.refresh_from_db()
        assert new.state == State.HELD
        wait_for(lambda: clock.now() > end)
        scheduler.run_once()
        old.refresh_from_db()
        new.refresh_from_db()
        assert (old.state, old.attempt) == (State.CANCELLED, 1)
        assert new.state != State.HELD

    def test_hints_that_redis_lost_are_sent_again(
        self, scheduler: Scheduler, redis_client: redis.Redis
    ) -> None:
        run(State.QUEUED, queued_at=clock.now() - timedelta(seconds=4))
        scheduler.run_once()
        assert redis_client.llen("celery\x06\x166") == 1

    def test_a_herd_is_fired_before_lost_hints_are_looked_for_but_not_for_long(
        self, scheduler: Scheduler, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tick, "BUSY_MAX", 0.0)  # one batch a tick
        settle(scheduler)
        many(1500)
        let_them_come_due()
        run(State.QUEUED, queue="other", queued_at=clock.now() - timedelta(seconds=4))
        scheduler.run_once()
        assert redis_client.llen("other\x06\x166") == 0
        scheduler.work.publisher.resend_by.again_in(0)
        scheduler.run_once()
        assert redis_client.llen("other\x06\x166") == 1
        assert Run.objects.filter(task="t").count() == 1000

    def test_what_is_raised_is_published_in_the_same_tick(
        self, scheduler: Scheduler, redis_client: redis.Redis
    ) -> None:
        run(deadline=clock.now() - timedelta(seconds=1))
        run(State.QUEUED, deadline=clock.now() + timedelta(seconds=30))
        scheduler.run_once()
        assert (redis_client.llen("celery"), redis_client.llen("celery\x06\x163")) == (1, 1)

    def test_old_runs_are_looked_for_every_ten_seconds(
        self, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settle(scheduler)
        made = run(State.QUEUED, run_at=clock.now() - timedelta(minutes=21))
        scheduler.run_once()
        assert Run.objects.get(pk=made.pk).priority == Priority.MEDIUM
        monkeypatch.setattr(scheduler.work.recovery.age, "at", 0.0)
        scheduler.run_once()
        assert Run.objects.get(pk=made.pk).priority == Priority.HIGH
        assert 9 < scheduler.work.recovery.age.at - time.monotonic() <= 10

    def test_last_runs_reach_periodic_task_within_a_minute(
        self, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        row = schedule()
        settle(scheduler)
        set_plan(row, clock.now() - timedelta(seconds=1))
        monkeypatch.setattr(scheduler.work.copy, "at", 0.0)
        settle(scheduler)
        row.refresh_from_db()
        assert row.total_run_count == 1

    def test_last_runs_are_copied_a_few_at_a_time(
        self, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = [schedule(name=f"s{number}") for number in range(5)]
        settle(scheduler)
        for row in rows:
            set_plan(row, clock.now() - timedelta(seconds=1))
        monkeypatch.setattr(tick, "COPY_BATCH", 2)
        monkeypatch.setattr(scheduler.work.copy, "at", 0.0)
        copied = []
        for _ in range(4):
            scheduler.run_once()
            copied.append(PeriodicTask.objects.filter(total_run_count=1).count())
        assert copied == [2, 4, 5, 5]
        assert scheduler.work.copy.at > time.monotonic()

    def test_a_ring_ends_its_sleep(self, scheduler: Scheduler) -> None:
        settle(scheduler)
        scheduler.tick()
        began = time.monotonic()
        from scheduling.broker import doorbell

        doorbell.ring()
        scheduler.tick()
        assert time.monotonic() - began < tick.SLEEP_MAX


@pytest.mark.django_db
class TestARepairThatFails:
    def test_it_stops_neither_the_others_nor_the_schedules(
        self, scheduler: Scheduler, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings.RUN_LEASE = timedelta(seconds=0.1)  # one has passed since Postgres started
        row = schedule()
        settle(scheduler)
        set_plan(row, clock.now() - timedelta(seconds=1))
        yesterday = clock.now() - timedelta(days=1)
        poison = run(State.RUNNING, lease_expires_at=yesterday)
        other = run(State.RUNNING, lease_expires_at=yesterday + timedelta(hours=1))
        finish = finishing.finish

        def refuse_one(run_id: UUID, attempt: int, outcome: Outcome) -> bool:
            if run_id == poison.pk:
                raise ValueError("unexpected")
            return finish(run_id, attempt, outcome)

        monkeypatch.setattr(lost_leases, "finish", refuse_one)

        def is_recovered() -> bool:
            settle(scheduler)
            return Run.objects.get(pk=other.pk).state != State.RUNNING

        wait_for(is_recovered, message="the other run is recovered")
        assert Run.objects.get(pk=poison.pk).state == State.RUNNING
        assert len(runs_of(row)) == 1


@pytest.mark.django_db(transaction=True)
class TestAfterAnOutage:
    """Plans that were due long ago: the bound that spares dead index entries must not hide them."""

    def test_everything_that_was_missed_is_fired_by_the_first_tick(
        self, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        many(30)
        Plan.objects.update(next_due_at=clock.now() - timedelta(hours=2))
        monkeypatch.setattr(planning, "BATCH", 10)
        monkeypatch.setattr(firing, "BATCH", 10)
        settle(scheduler)
        assert Run.objects.filter(task="t").count() == 30

    def test_more_than_one_tick_can_do_follows_in_the_next(
        self, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        many(30)
        Plan.objects.update(next_due_at=clock.now() - timedelta(hours=2))
        monkeypatch.setattr(planning, "BATCH", 10)
        monkeypatch.setattr(firing, "BATCH", 10)
        monkeypatch.setattr(tick, "BUSY_MAX", 0.0)
        settle(scheduler)
        assert Run.objects.filter(task="t").count() == 30

    @pytest.mark.parametrize(
        ("catch_up", "window", "hours"), [("all", None, 8), ("none", timedelta(hours=9), 1)]
    )
    def test_catching_up_goes_on_at_once(
        self, scheduler: Scheduler, catch_up: str, window: timedelta | None, hours: int
    ) -> None:
        policy = {"catch_up": catch_up, "catch_up_window": window}
        row = schedule(crontab=crontab(), policy=policy)
        settle(scheduler)
        set_plan(row, clock.now() - timedelta(hours=hours))
        settle(scheduler)
        assert len(runs_of(row)) >= hours * 60

    def test_what_somebody_held_is_fired_within_a_second_of_being_free(
        self, scheduler: Scheduler
    ) -> None:
        row, other = schedule(), schedule(name="other")
        settle(scheduler)
        settle(scheduler)
        set_plan(row, clock.now() - timedelta(minutes=5))
        set_plan(other, clock.now() - timedelta(minutes=5))
        with second_connection() as somebody:
            somebody.execute(
                "SELECT 1 FROM scheduling_plan WHERE schedule_id = %s FOR UPDATE", [row.pk]
            )
            settle(scheduler)
            assert (len(runs_of(row)), len(runs_of(other))) == (0, 1)
        wait_for(lambda: scheduler.run_once() >= 0 and bool(runs_of(row)), timeout=2)

    def test_what_another_beat_left_in_the_midst_of_catching_up_is_found_within_a_second(
        self, scheduler: Scheduler
    ) -> None:
        row = schedule()
        settle(scheduler)
        settle(scheduler)
        set_plan(row, clock.now() - timedelta(minutes=5))
        wait_for(lambda: scheduler.run_once() >= 0 and bool(runs_of(row)), timeout=2)

    def test_beat_does_not_spin_while_somebody_holds_what_is_due(
        self, scheduler: Scheduler
    ) -> None:
        row = schedule()
        settle(scheduler)
        set_plan(row, clock.now() - timedelta(seconds=1))
        with second_connection() as somebody:
            somebody.execute("SELECT 1 FROM scheduling_plan FOR UPDATE")
            assert scheduler.run_once() == tick.LOCKED_PAUSE

    def test_a_time_set_minutes_in_the_past_is_fired_at_once(self, scheduler: Scheduler) -> None:
        settle(scheduler)
        settle(scheduler)
        rule = ClockedSchedule.objects.create(clocked_time=clock.now() - timedelta(minutes=3))
        row = schedule(clocked=rule, one_off=True)
        settle(scheduler)
        assert len(runs_of(row)) == 1


@pytest.mark.django_db
class TestLeasesAfterASilence:
    """While the ledger was away, no worker could renew a lease."""

    @pytest.fixture(autouse=True)
    def _lease(self, settings: Settings) -> None:
        settings.RUN_LEASE = timedelta(seconds=1)

    @pytest.fixture
    def scheduler(self, redis_client: redis.Redis) -> Scheduler:
        """A beat that had no answer from the ledger for a minute."""
        scheduler = make()
        scheduler.run_once()
        assert scheduler.work.silence.heard_at is not None
        scheduler.work.silence.heard_at -= 60
        return scheduler

    def test_they_are_judged_a_lease_later_and_count_no_failure(self, scheduler: Scheduler) -> None:
        back = clock.now()
        made = run(State.RUNNING, lease_expires_at=back, max_attempts=2, failures=1)
        scheduler.run_once()
        scheduler.run_once()
        made.refresh_from_db()
        assert made.state == State.RUNNING
        wait_for(lambda: bool(scheduler.run_once()) and Run.objects.get(pk=made.pk).attempt == 2)
        made.refresh_from_db()
        assert (made.state, made.failures) == (State.QUEUED, 1)
        assert made.queued_at is not None
        assert made.queued_at > back + timedelta(seconds=1)

    def test_one_that_was_renewed_since_then_counts(self, scheduler: Scheduler) -> None:
        scheduler.run_once()
        made = run(State.RUNNING, lease_expires_at=clock.now() + timedelta(seconds=1))
        wait_for(lambda: bool(scheduler.run_once()) and Run.objects.get(pk=made.pk).attempt == 2)
        assert Run.objects.get(pk=made.pk).failures == 1

    def test_a_long_wait_for_redis_is_no_silence_of_the_ledger(self, scheduler: Scheduler) -> None:
        wait_for(scheduler.work.silence.may_judge)
        scheduler.work.silence.not_asked()
        made = run(State.RUNNING, lease_expires_at=clock.now())
        scheduler.run_once()
        assert Run.objects.get(pk=made.pk).failures == 1

    def test_a_beat_that_has_just_started_judges_when_who_lives_has_renewed(
        self, redis_client: redis.Redis
    ) -> None:
        # The clock may have been stepped while no beat looked.
        begun, made = time.monotonic(), run(State.RUNNING, lease_expires_at=clock.now())
        beat = make()
        beat.run_once()
        assert Run.objects.get(pk=made.pk).failures == 0
        wait_for(lambda: bool(beat.run_once()) and Run.objects.get(pk=made.pk).failures == 1)
        assert 0.3 < time.monotonic() - begun < 1


@pytest.mark.django_db(transaction=True)
def test_a_tick_that_takes_long_is_not_cut(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    def many_answers() -> None:
        for _ in range(12):
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_sleep(0.1)")

    connection.close()
    monkeypatch.setattr(silence, "waits", silence.Waits())
    monkeypatch.setattr("scheduling.beat.scheduler.SILENT_AFTER", 0.5)
    settings.RUN_LEASE = timedelta(seconds=0.5)
    scheduler = make()
    scheduler.setup_schedule()
    monkeypatch.setattr(heartbeats, "forget_dead", many_answers)
    scheduler.tick()
    connection.close()  # each of its answers is timed
    assert "database_" not in caplog.text


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("SELECT pg_terminate_backend(pg_backend_pid())", id="gone"),
        pytest.param("SET default_transaction_read_only = on", id="takes no writes"),
    ],
)
def test_a_ledger_that_is_away_is_waited_out_with_a_warning(
    statement: str, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = make()
    with suppress(OperationalError), connection.cursor() as cursor:
        cursor.execute(statement)
    assert scheduler.tick() == scheduler.tick() == 0
    said = [(each.levelname, each.getMessage()) for each in caplog.records]
    assert [each for each in said if each[0] != "INFO"] == [("WARNING", "database_away")]


@pytest.mark.django_db
class TestServicesThatAreAway:
    def test_a_tick_without_redis_waits_and_does_not_raise(
        self, settings: Settings, redis_client: redis.Redis
    ) -> None:
        settings.REDIS_URL = "redis://127.0.0.1:1/0"
        made = run()
        scheduler = make()
        assert scheduler.tick() == 0
        made.refresh_from_db()
        assert made.state == State.SCHEDULED

    def test_an_idle_beat_says_nothing_of_a_redis_that_it_does_not_need_yet(
        self, settings: Settings, bare_schedules: None, redis_client: redis.Redis, caplog: Any
    ) -> None:
        settings.REDIS_URL = "redis://127.0.0.1:1/0"
        row = schedule()
        set_plan(row, clock.now() + timedelta(days=100))
        scheduler = make()
        settle(scheduler)
        assert scheduler.tick() == 0
        assert "redis_away" not in caplog.text
        assert scheduler._pause == 0
        set_plan(row, clock.now() - timedelta(milliseconds=5))
        assert scheduler.tick() == 0
        assert "redis_away" in caplog.text
        assert [made.state for made in runs_of(row)] == [State.SCHEDULED]

    def test_a_redis_that_does_not_answer_keeps_no_occurrence_waiting(
        self, settings: Settings, own_redis: RedisServer, bare_schedules: None
    ) -> None:
        settings.REDIS_URL = own_redis.url
        row = schedule(interval=interval(1, "seconds"))
        scheduler = make()
        client = redis.Redis.from_url(own_redis.url)

        def fired(count: int) -> bool:
            scheduler.tick()
            return len(runs_of(row)) >= count

        wait_for(lambda: fired(1), timeout=10)
        os.kill(own_redis.pid, signal.SIGSTOP)
        try:
            wait_for(lambda: fired(7), timeout=10)
        finally:
            os.kill(own_redis.pid, signal.SIGCONT)
        made = runs_of(row)
        assert sum(each.coalesced for each in made) == 0
        assert max(each.created_at - each.due_at for each in made[1:]) < timedelta(seconds=1)

        def all_there() -> bool:
            scheduler.tick()
            length: Any = client.llen("celery\x06\x166")
            return bool(length >= len(made))

        wait_for(all_there, timeout=10)

    def test_pauses_grow_up_to_five_seconds(self, scheduler: Scheduler) -> None:
        pauses = [scheduler._backed_off("redis_away", None) for _ in range(7)]
        assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]

    def test_a_bug_in_a_step_does_not_end_the_process(
        self, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: Any) -> float:
            raise RuntimeError("a bug")

        monkeypatch.setattr(scheduler, "run_once", broken)
        monkeypatch.setattr(connection, "close", lambda: None)
        assert scheduler.tick() == 0


@pytest.mark.django_db
class TestTheCostOfNothing:
    def statements(self, scheduler: Scheduler) -> list[str]:
        scheduler.work.pulse.at = time.monotonic() + 60  # not due on a slow machine
        said: list[str] = []
        execute = psycopg.Cursor.execute

        def noting(cursor: Any, query: Any, *args: Any, **options: Any) -> Any:
            said.append(str(query))
            return execute(cursor, query, *args, **options)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(psycopg.Cursor, "execute", noting)
            scheduler.run_once()
        return said

    def test_a_tick_with_nothing_due_is_the_same_two_statements_at_any_size(
        self, scheduler: Scheduler
    ) -> None:
        settle(scheduler)
        settle(scheduler)
        few = self.statements(scheduler)
        many(100_000)
        settle(scheduler)
        lots = self.statements(scheduler)
        assert len(few) == len(lots) == 2
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE scheduling_plan")
            plan = explained(cursor, LOOK, everywhere())
        assert "plan_due" in plan
        assert "plan_to_make" in plan
        assert "Seq Scan" not in plan

    def test_held_runs_are_looked_for_once_a_second(self, scheduler: Scheduler) -> None:
        run(State.RUNNING, schedule_id=7)
        run(State.HELD, schedule_id=7)
        settle(scheduler)
        scheduler.work.recovery.release.at = (
            time.monotonic() + 60
        )  # a slow machine must not make it due now
        assert len(self.statements(scheduler)) == 2
        scheduler.work.recovery.release.at = 0.0
        assert len(self.statements(scheduler)) == 3
        assert 0 < scheduler.work.recovery.release.at - time.monotonic() <= 1

    @pytest.mark.usefixtures("bare_runs")
    def test_no_step_reads_runs_that_have_ended(self, scheduler: Scheduler) -> None:
        now = clock.now()
        write_successes("t", 20_000, at=now, expires_at=now)
        with connection.cursor() as cursor:
            look = explained(cursor, LOOK, everywhere())
            lanes = explained(cursor, WAITING_LANES)
        assert "Seq Scan on scheduling_run" not in look + lanes
        for index in (
            "run_running", "run_expiring", "run_held", "run_queued",
            "run_deadline ", "run_deadline_near ",
        ):  # fmt: skip
            assert index in look
        assert "run_scheduled" in lanes


def explained(cursor: CursorWrapper, sql: str, parameters: Any = None) -> str:
    cursor.execute(f"EXPLAIN (ANALYZE OFF) {sql}", parameters)
    return "\n".join(line for (line,) in cursor.fetchall())


@pytest.mark.django_db(transaction=True)
def test_two_beats_start_every_occurrence_once(redis_client: redis.Redis) -> None:
    many(1000)
    instant = clock.now() - timedelta(seconds=1)
    Plan.objects.update(next_due_at=instant)

    def ticks() -> None:
        settle(make())

    for one in [in_thread(ticks) for _ in range(2)]:
        one.result(40)
    assert Run.objects.filter(task="t", due_at=instant).count() == 1000
    settle(make())
    assert not Run.objects.filter(task="t").exclude(state=State.QUEUED).exists()
    ids: Any = redis_client.lrange("celery\x06\x166", 0, -1)
    assert len(ids) == len(set(ids)) == Run.objects.filter(priority=Priority.MEDIUM).count()


@pytest.mark.django_db(transaction=True)
class TestAHerd:
    def test_every_occurrence_is_in_redis_once(self, redis_client: redis.Redis) -> None:
        many(2400)
        let_them_come_due()
        settle(make())
        assert Run.objects.filter(task="t", state=State.QUEUED).count() == 2400
        ids: Any = redis_client.lrange("celery\x06\x166", 0, -1)
        assert len(set(ids)) == len(ids) == 2400

    def test_the_window_holds(self, redis_client: redis.Redis, settings: Settings) -> None:
        settings.QUEUE_WINDOW = 1200
        many(2400)
        let_them_come_due()
        settle(make())
        assert redis_client.llen("celery\x06\x166") == 1200
        assert Run.objects.filter(task="t", state=State.SCHEDULED).count() == 1200

    def test_the_batches_of_a_long_one_are_longer_from_some_time_on(
        self, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tick, "HERD", 2)
        monkeypatch.setattr(tick, "BUSY_MAX", 0.0)  # one batch a tick
        scheduler, there = make(), []
        settle(scheduler)
        many(2300)
        let_them_come_due()
        for _ in range(4):
            scheduler.run_once()
            there.append(redis_client.llen("celery\x06\x166"))
        assert there == [500, 1000, 2000, 2300]

    def test_what_redis_refuses_while_the_next_batch_is_fired_is_told_and_sent_later(
        self, own_redis: RedisServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings.REDIS_URL = own_redis.url
        scheduler, begin = make(), dispatch.Pushes.begin
        settle(scheduler)
        many(1200)
        let_them_come_due()

        def without_redis(*arguments: Any) -> None:
            own_redis.stop()
            begin(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(dispatch.Pushes, "begin", without_redis)
            with pytest.raises(redis.RedisError):
                scheduler.run_once()
        assert Run.objects.filter(task="t").count() == 1200
        own_redis.start()
        settle(scheduler)
        client = redis.Redis.from_url(own_redis.url)

        def all_there() -> bool:
            scheduler.run_once()
            return client.llen("celery\x06\x166") == 1200

        wait_for(all_there, timeout=15)

    def test_without_redis_every_occurrence_has_its_row(
        self, own_redis: RedisServer, settings: Settings
    ) -> None:
        settings.REDIS_URL = own_redis.url
        many(1200)
        let_them_come_due()
        scheduler = make()
        own_redis.stop()
        scheduler.tick()
        assert Run.objects.filter(task="t", state=State.SCHEDULED).count() == 1200

    def test_without_redis_what_comes_due_in_a_lane_that_is_known_has_its_row(
        self, own_redis: RedisServer, settings: Settings
    ) -> None:
        settings.REDIS_URL = own_redis.url
        row, scheduler = schedule(), make()
        settle(scheduler)
        set_plan(row, clock.now() - timedelta(milliseconds=5))
        settle(scheduler)
        assert scheduler.work.publisher.lanes
        own_redis.stop()
        set_plan(row, clock.now() - timedelta(milliseconds=5))
        with suppress(redis.RedisError):
            scheduler.run_once()
        assert [made.state for made in runs_of(row)] == [State.QUEUED, State.SCHEDULED]

    def test_a_connection_that_ends_in_its_midst_only_delays_it(
        self, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        many(1200)
        let_them_come_due()
        scheduler, begin = make(), dispatch.Pushes.begin

        def ended_by_postgres(*arguments: Any) -> None:
            monkeypatch.setattr(dispatch.Pushes, "begin", begin)
            with connection.cursor() as cursor, suppress(OperationalError):
                cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            begin(*arguments)

        monkeypatch.setattr(dispatch.Pushes, "begin", ended_by_postgres)
        scheduler.tick()
        assert Run.objects.filter(task="t").count() == 500
        settle(scheduler)
        ids: Any = redis_client.lrange("celery\x06\x166", 0, -1)
        assert len(set(ids)) == len(ids) == Run.objects.filter(task="t").count() == 1200


def test_celery_can_build_it_as_it_does(redis_client: redis.Redis) -> None:
    scheduler = make()
    assert (scheduler.schedule, scheduler.should_sync()) == ({}, False)
    assert scheduler.info.strip().startswith(". ledger ->")
    assert add.name
    scheduler._bell.close()


def test_it_warns_at_its_start_if_the_code_differs_from_the_ledger(
    scheduler: Scheduler, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings.CELERY_BEAT_SCHEDULE = {"new": {"task": ADD, "schedule": 60}}
    from_code.sync()
    scheduler._compare_with_code()
    assert "code_schedules_differ" not in caplog.text
    settings.CELERY_BEAT_SCHEDULE = {"newer": {"task": ADD, "schedule": 60}}
    scheduler._compare_with_code()
    assert "code_schedules_differ" in caplog.text
    caplog.clear()
    settings.CELERY_BEAT_SCHEDULE = {"bad": {"task": ADD, "schedule": "hourly"}}
    scheduler._compare_with_code()
    assert "code_schedules_differ" in caplog.text
