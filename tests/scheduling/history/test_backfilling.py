"""Backfills: runs for a range of the past, apart from the schedule's other runs."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import redis
from celery.result import AsyncResult
from django.db import connection, transaction
from django_celery_beat.models import ClockedSchedule, PeriodicTask

from scheduling import clock, schedules
from scheduling.beat import firing
from scheduling.errors import EnqueueError, RowLockedError, ScheduleError
from scheduling.execution import cancelling
from scheduling.execution.cancelling import cancel
from scheduling.execution.finishing import finish
from scheduling.execution.releasing import release_held
from scheduling.history import backfill_pace, backfilling
from scheduling.history.backfilling import Extent
from scheduling.models import Backfill, Origin, Priority, Run, State
from scheduling.runs.outcomes import Outcome
from tests.scheduling.ledger import (
    LONG_AGO,
    crontab,
    in_thread,
    interval,
    is_blocked,
    run,
    runs_of,
    schedule,
    second_connection,
    set_plan,
    write_successes,
)
from tests.waiting import wait_for

ONE = UUID(int=1)
SUCCEEDED = Outcome(State.SUCCEEDED)
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def at(hour: int, day: int = 20) -> datetime:
    return datetime(2026, 11, day, hour, tzinfo=UTC)


def hourly(**columns: Any) -> PeriodicTask:
    """Return a schedule that is due at each full hour, next at 13:00, looked at at 12:00."""
    row = schedule(crontab=crontab("0"), **columns)
    set_plan(row, at(13))
    return schedules.named(row.name)


def extent(row: PeriodicTask, since: datetime, until: datetime, **options: Any) -> Extent:
    return backfilling.extent(row, since, until, now=NOON, **options)


def start(
    row: PeriodicTask, since: datetime | None = None, until: datetime = NOON, **options: Any
) -> Backfill:
    """Start a backfill, from 8:00 to 12:00 unless told."""
    return backfilling.start(row, since or at(8), until, by="ann", now=NOON, **options)


def states(backfill: Backfill) -> list[str]:
    """Return the states of a backfill's runs, by their nominal instants."""
    runs = Run.objects.filter(backfill_id=backfill.pk).order_by("due_at")
    return list(runs.values_list("state", flat=True))


def claimed(backfill: Backfill) -> list[Run]:
    """Make the runs that beat has released running, as workers would."""
    released = Run.objects.filter(backfill_id=backfill.pk, state=State.SCHEDULED)
    ids = list(released.values_list("pk", flat=True))
    released.update(
        state=State.RUNNING, worker="w1", lease_expires_at=clock.now() + timedelta(minutes=1)
    )
    return list(Run.objects.filter(pk__in=ids))


def end(runs: Iterable[Run]) -> None:
    for one in runs:
        assert finish(one.pk, one.attempt, SUCCEEDED)


def of_backfill(state: State, schedule_id: int = 7) -> Run:
    return run(state, schedule_id=schedule_id, backfill_id=ONE, origin=Origin.BACKFILL)


def state_of(row: Run) -> str:
    return Run.objects.get(pk=row.pk).state


@pytest.mark.django_db
class TestBesideTheSchedule:
    @pytest.mark.parametrize(
        "policy", [{"overlap": "skip"}, {"overlap": "queue"}, {"catch_up": "all"}]
    )
    def test_its_unfinished_runs_hold_up_no_occurrence(self, policy: dict[str, str]) -> None:
        row = schedule(policy=policy)
        for state in (State.HELD, State.RUNNING):
            of_backfill(state, row.pk)
        set_plan(row, clock.now() - timedelta(milliseconds=5))
        firing.fire_due(LONG_AGO)
        fired = Run.objects.get(schedule_id=row.pk, origin=Origin.SCHEDULE)
        assert fired.state == State.SCHEDULED

    def test_a_replacing_occurrence_cancels_none_of_them(self) -> None:
        row = schedule(policy={"overlap": "replace"})
        for state in (State.HELD, State.SCHEDULED, State.RUNNING):
            of_backfill(state, row.pk)
        own = run(schedule_id=row.pk)
        set_plan(row, clock.now() - timedelta(milliseconds=5))
        firing.fire_due(LONG_AGO)
        assert state_of(own) == State.CANCELLED
        made = [one for one in runs_of(row) if one.backfill_id]
        assert {one.state for one in made} == {State.HELD, State.SCHEDULED, State.RUNNING}
        assert {one.cancel_requested_by for one in made} == {""}
        assert Run.objects.get(schedule_id=row.pk, origin=Origin.SCHEDULE).state == State.SCHEDULED

    def test_a_run_of_the_schedule_that_ends_releases_none_of_them(self) -> None:
        waiting, ending = of_backfill(State.HELD), run(State.RUNNING, schedule_id=7)
        finish(ending.pk, 1, SUCCEEDED)
        assert release_held() == 0
        assert state_of(waiting) == State.HELD

    def test_what_the_schedule_holds_does_not_wait_for_them(self) -> None:
        of_backfill(State.RUNNING)
        held = run(State.HELD, schedule_id=7)
        finish(run(State.RUNNING, schedule_id=7).pk, 1, SUCCEEDED)
        assert state_of(held) == State.SCHEDULED
        held = run(State.HELD, schedule_id=8)
        of_backfill(State.RUNNING, 8)
        assert release_held() == 1
        assert state_of(held) == State.SCHEDULED


@pytest.mark.django_db
class TestItsExtent:
    def test_both_ends_are_included(self) -> None:
        found = extent(hourly(), at(9), at(12))
        assert found.instants == [at(9), at(10), at(11), at(12)]
        assert (found.done, found.pending) == (0, 0)

    @pytest.mark.parametrize(
        "state", [State.SUCCEEDED, State.RUNNING, State.HELD, State.SCHEDULED, State.QUEUED]
    )
    def test_what_has_succeeded_or_may_still_is_left_out(self, state: State) -> None:
        row = hourly()
        run(state, schedule_id=row.pk, origin=Origin.SCHEDULE, due_at=at(10))
        found = extent(row, at(9), at(11))
        assert (found.instants, found.done) == ([at(9), at(11)], 1)
        assert extent(row, at(9), at(11), again=True).instants == [at(9), at(10), at(11)]

    @pytest.mark.parametrize("state", [State.FAILED, State.SKIPPED, State.CANCELLED, State.EXPIRED])
    def test_what_ended_in_any_other_way_is_run(self, state: State) -> None:
        row = hourly()
        run(state, schedule_id=row.pk, origin=Origin.SCHEDULE, due_at=at(10))
        assert extent(row, at(10), at(10)).instants == [at(10)]

    def test_a_replay_that_succeeded_counts_and_another_schedules_run_does_not(self) -> None:
        row = hourly()
        run(State.FAILED, schedule_id=row.pk, origin=Origin.SCHEDULE, due_at=at(10))
        run(State.SUCCEEDED, schedule_id=row.pk, origin=Origin.REPLAY, due_at=at(10))
        run(State.SUCCEEDED, schedule_id=row.pk + 1, origin=Origin.SCHEDULE, due_at=at(11))
        assert extent(row, at(10), at(11)).instants == [at(11)]

    def test_what_one_run_stood_for_is_run(self) -> None:
        row = hourly()
        run(State.SUCCEEDED, schedule_id=row.pk, origin=Origin.SCHEDULE, due_at=at(9), coalesced=2)
        assert extent(row, at(9), at(11)).instants == [at(10), at(11)]

    def test_what_beat_has_not_fired_yet_is_left_to_beat(self) -> None:
        row = hourly()
        set_plan(row, at(11))
        found = extent(schedules.named(row.name), at(9), at(12), again=True)
        assert (found.instants, found.pending) == ([at(9), at(10)], 2)

    def test_a_paused_or_disabled_schedule_has_a_past_as_well(self) -> None:
        row = hourly(policy={"paused_at": LONG_AGO}, enabled=False)
        set_plan(row, None)
        assert extent(schedules.named(row.name), at(11), at(12)).instants == [at(11), at(12)]

    def test_an_interval_counts_from_its_anchor(self) -> None:
        row = schedule(interval=interval(90))
        set_plan(row, at(13), anchor_at=at(8))
        found = extent(schedules.named(row.name), at(7), at(11))
        assert found.instants == [at(9) + timedelta(minutes=30), at(11)]

    def test_the_one_instant_of_a_clocked_schedule_can_be_filled(self) -> None:
        row = schedule(clocked=ClockedSchedule.objects.create(clocked_time=at(9)), one_off=True)
        set_plan(row, None, done=True)
        assert extent(schedules.named(row.name), at(8), at(12)).instants == [at(9)]

    @pytest.mark.parametrize(
        ("since", "until", "message"),
        [
            (at(12), at(11), "ends .* before it begins"),
            (at(8), at(13), "13:00:00Z is in the future"),
            (datetime(2000, 1, 1, tzinfo=UTC), at(12), "more than 100,000 occurrences"),
        ],
    )
    def test_a_range_that_cannot_be_is_refused(
        self, since: datetime, until: datetime, message: str
    ) -> None:
        with pytest.raises(ScheduleError, match=message):
            extent(hourly(), since, until)

    def test_a_range_from_the_first_year_is_only_long(self) -> None:
        row = schedule(crontab=crontab("0", "0", day_of_month="1", month_of_year="1"))
        first = datetime(1, 1, 1, tzinfo=UTC)
        assert len(extent(schedules.named(row.name), first, at(12)).instants) == 2026 - 1900

    def test_millions_of_occurrences_are_refused_at_once(self) -> None:
        row = schedule(interval=interval(1, "seconds"), start_time=at(1) - timedelta(days=9))
        with pytest.raises(ScheduleError, match="more than 100,000"):
            extent(schedules.named(row.name), at(1) - timedelta(days=2), at(1))

    def test_a_one_off_by_a_crontab_has_no_past(self) -> None:
        with pytest.raises(ScheduleError, match="runs only once"):
            extent(hourly(one_off=True), at(9), at(12))

    def test_a_rule_that_cannot_be_read_is_said(self) -> None:
        row = schedule(crontab=crontab("61"))
        with pytest.raises(ScheduleError, match=r"'nightly': .*61"):
            extent(schedules.named(row.name), at(9), at(12))


@pytest.mark.django_db
class TestStarting:
    def test_every_run_is_held_and_says_what_it_is(self) -> None:
        row = hourly(
            queue="mails", priority=0, headers='{"tenant": "a"}', policy={"max_attempts": 7}
        )
        backfill = start(row, concurrency=3)
        assert (backfill.run_count, backfill.concurrency, backfill.created_by) == (5, 3, "ann")
        first, *_ = runs = runs_of(row)
        assert [one.due_at for one in runs] == [at(8), at(9), at(10), at(11), at(12)]
        assert {one.state for one in runs} == {State.HELD}
        assert {one.backfill_id for one in runs} == {backfill.pk}
        assert (first.origin, first.priority, first.queue) == ("backfill", Priority.LOW, "mails")
        assert (first.schedule_name, first.task, first.args) == (row.name, row.task, row.args)
        assert (first.options, first.max_attempts) == ('{"headers": {"tenant": "a"}}', 7)
        assert (first.enqueued_by, first.expires_at, first.deadline) == ("ann", None, None)
        assert first.run_at <= clock.now()

    def test_more_than_one_statement_takes_are_written_all(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(backfilling, "STEP", 2)
        assert start(hourly()).run_count == 5
        assert Run.objects.count() == 5

    def test_a_second_one_leaves_out_what_the_first_one_has(self) -> None:
        row = hourly()
        start(row, at(8), at(10))
        assert start(row, at(8), at(12)).run_count == 2
        with pytest.raises(ScheduleError, match=r"nothing to run.*5 have a run that succeeded"):
            start(row)

    def test_nothing_in_the_range_is_said_and_writes_nothing(self) -> None:
        row = hourly()
        with pytest.raises(ScheduleError, match="its rule has no occurrence there"):
            start(row, at(8) + timedelta(minutes=1), at(8) + timedelta(minutes=2))
        assert not Backfill.objects.exists()

    @pytest.mark.parametrize("concurrency", [0, 1001, 10**9])
    def test_a_concurrency_out_of_range_is_refused(self, concurrency: int) -> None:
        with pytest.raises(ScheduleError, match=f"{concurrency} is not from 1 to 1000"):
            start(hourly(), concurrency=concurrency)

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"task": "tests.jobs.tasks.ad"}, "did you mean"),
            ({"args": "[1,"}, "'nightly': args"),
            ({"args": "[1, 2, 3]"}, "do not fit"),
        ],
    )
    def test_what_could_not_run_is_refused(self, columns: dict[str, str], message: str) -> None:
        with pytest.raises(EnqueueError, match=message):
            start(hourly(**columns))
        assert not Run.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_of_two_that_are_asked_for_at_once_the_second_sees_the_first() -> None:
    row = hourly()
    with transaction.atomic():
        start(row, at(8), at(10))
        second = in_thread(lambda: start(row, at(8), at(12)))
        assert wait_for(lambda: second.done() or is_blocked())
    assert second.result(5).run_count == 2
    assert Run.objects.count() == 5


@pytest.mark.django_db
class TestLettingGo:
    def test_the_oldest_go_first_as_many_as_may_run_at_once(self) -> None:
        backfill = start(hourly(), concurrency=2)
        assert backfill_pace.release() == 2
        assert states(backfill) == ["scheduled", "scheduled", "held", "held", "held"]
        assert backfill_pace.release() == 0

    def test_what_ends_makes_room(self) -> None:
        backfill = start(hourly())
        for left in (4, 3, 2, 1, 0):
            assert backfill_pace.release() == 1
            assert states(backfill).count("held") == left
            end(claimed(backfill))
        assert backfill_pace.release() == 0
        assert backfilling.progress(backfill).states == {"succeeded": 5}

    def test_a_retry_keeps_its_place(self) -> None:
        backfill = start(hourly())
        backfill_pace.release()
        (one,) = claimed(backfill)
        finish(one.pk, 1, Outcome(State.SCHEDULED, failed=True))
        assert backfill_pace.release() == 0
        one.refresh_from_db()
        assert (one.backfill_id, one.attempt, one.priority) == (backfill.pk, 2, Priority.LOW)

    def test_each_has_its_own_limit(self) -> None:
        first = start(hourly())
        second = start(hourly(name="other"), concurrency=2)
        assert backfill_pace.release() == 3
        end(claimed(first))
        assert backfill_pace.release() == 1
        assert states(second) == ["scheduled", "scheduled", "held", "held", "held"]

    def test_a_run_that_was_cancelled_while_held_is_passed_over(self) -> None:
        backfill = start(hourly())
        cancel(runs_of(schedules.named("nightly"))[0].pk, by="ann")
        backfill_pace.release()
        assert states(backfill) == ["cancelled", "scheduled", "held", "held", "held"]

    @pytest.mark.usefixtures("bare_runs")
    def test_it_costs_no_look_at_what_has_ended(self) -> None:
        start(hourly())
        write_successes("t", 20_000, origin=Origin.BACKFILL, at=NOON)
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN {backfill_pace.WITH_ROOM}")
            plan = "\n".join(line for (line,) in cursor.fetchall())
        assert "Seq Scan on scheduling_run" not in plan
        assert "run_backfill_held" in plan

    @pytest.mark.usefixtures("bare_runs")
    def test_it_reads_no_more_of_what_is_held_than_it_lets_go(self) -> None:
        backfill = start(hourly())
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(backfill_pace.RELEASE_SETTINGS)
            cursor.execute(f"EXPLAIN {backfill_pace.RELEASE}", [[backfill.pk]])
            plan = "\n".join(line for (line,) in cursor.fetchall())
        assert "Sort" not in plan
        assert "run_backfill_held" in plan


@pytest.mark.django_db(transaction=True)
class TestManyBeats:
    def test_together_they_released_no_more_than_one_alone(self) -> None:
        backfill = start(hourly(), since=at(0), concurrency=3)
        beats = [in_thread(backfill_pace.release) for _ in range(6)]
        assert sum(beat.result(10) for beat in beats) <= 3
        backfill_pace.release()
        assert states(backfill).count("scheduled") == 3

    def test_one_that_sees_an_old_count_lets_go_nothing(self) -> None:
        backfill = start(hourly())
        with second_connection() as other:
            other.execute(
                "SELECT 1 FROM scheduling_backfill WHERE id = %s FOR NO KEY UPDATE", [backfill.pk]
            )
            assert backfill_pace.release() == 0, "another beat has it"
            other.execute(
                "UPDATE scheduling_run SET state = 'scheduled' WHERE id ="
                " (SELECT id FROM scheduling_run WHERE state = 'held' ORDER BY due_at LIMIT 1)"
            )
            other.commit()
        assert backfill_pace.release() == 0
        assert states(backfill).count("scheduled") == 1

    def test_a_run_that_somebody_holds_is_passed_over(self) -> None:
        backfill = start(hourly())
        first = runs_of(schedules.named("nightly"))[0]
        with second_connection() as other:
            other.execute("SELECT 1 FROM scheduling_run WHERE id = %s FOR UPDATE", [first.pk])
            assert backfill_pace.release() == 1
            assert states(backfill) == ["held", "scheduled", "held", "held", "held"]


@pytest.mark.django_db
class TestCancelling:
    def test_what_waits_is_cancelled_and_what_runs_is_told(self) -> None:
        backfill = start(hourly(), concurrency=2)
        backfill_pace.release()
        running = claimed(backfill)[0]
        Run.objects.filter(state=State.RUNNING).exclude(pk=running.pk).update(
            state=State.QUEUED, lease_expires_at=None
        )
        left = backfilling.cancel(backfill.pk, by="ben")
        assert left.states == {"cancelled": 4, "running": 1}
        running.refresh_from_db()
        assert running.cancel_requested_by == "ben"
        backfill.refresh_from_db()
        assert backfill.cancelled_by == "ben"
        assert backfill.cancelled_at is not None
        reasons = set(Run.objects.filter(state="cancelled").values_list("reason", flat=True))
        assert reasons == {"backfill cancelled by ben"}
        assert backfill_pace.release() == 0

    def test_an_attempt_that_fails_after_it_is_not_retried(self) -> None:
        backfill = start(hourly())
        backfill_pace.release()
        (running,) = claimed(backfill)
        backfilling.cancel(backfill.pk, by="ben")
        finish(running.pk, 1, Outcome(State.SCHEDULED, failed=True))
        assert set(states(backfill)) == {"cancelled"}

    def test_runs_of_the_schedule_and_of_other_backfills_go_on(self) -> None:
        row = hourly()
        own, other = run(schedule_id=row.pk), start(row, at(1), at(2))
        backfilling.cancel(start(row).pk, by="ben")
        assert state_of(own) == State.SCHEDULED
        assert set(states(other)) == {"held"}

    def test_one_that_has_ended_or_never_was_is_refused(self) -> None:
        backfill = start(hourly(), at(12))
        backfill_pace.release()
        end(claimed(backfill))
        with pytest.raises(ScheduleError, match="has ended already"):
            backfilling.cancel(backfill.pk, by="ben")
        with pytest.raises(ScheduleError, match=f"backfill {ONE} does not exist"):
            backfilling.cancel(ONE, by="ben")

    def test_what_a_canceller_left_that_died_is_cancelled_by_beat(self) -> None:
        backfill = start(hourly())
        Backfill.objects.update(cancelled_at=clock.now(), cancelled_by="ben")
        assert backfill_pace.release() == 0
        assert set(states(backfill)) == {"cancelled"}

    def test_it_can_be_asked_for_again_while_something_runs(self) -> None:
        backfill = start(hourly())
        backfill_pace.release()
        claimed(backfill)
        backfilling.cancel(backfill.pk, by="ben")
        assert backfilling.cancel(backfill.pk, by="eve").states["running"] == 1
        backfill.refresh_from_db()
        assert backfill.cancelled_by == "ben"


@pytest.mark.django_db(transaction=True)
def test_cancelling_waits_for_a_row_that_somebody_holds() -> None:
    backfill = start(hourly())
    first = runs_of(schedules.named("nightly"))[0]
    with second_connection() as other:
        other.execute("SELECT 1 FROM scheduling_run WHERE id = %s FOR UPDATE", [first.pk])
        cancelling = in_thread(lambda: backfilling.cancel(backfill.pk, by="ben"))
        assert wait_for(lambda: states(backfill).count("cancelled") == 4)
        assert not cancelling.done()
        other.rollback()
    assert cancelling.result(5).states == {"cancelled": 5}


@pytest.mark.django_db(transaction=True)
def test_the_end_of_a_run_wakes_beat_for_the_next_one(redis_client: redis.Redis) -> None:
    backfill = start(hourly())
    backfill_pace.release()
    (one,) = claimed(backfill)
    with redis_client.pubsub() as bell:  # type: ignore[no-untyped-call]
        bell.subscribe("scheduling.bell")
        assert bell.get_message(timeout=5) is not None
        end([one])
        assert bell.get_message(timeout=5) is not None


@pytest.mark.django_db(transaction=True)
class TestCancellingWhatSomebodyHolds:
    @pytest.fixture(autouse=True)
    def _soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cancelling, "PATIENCE", 0.1)

    def test_the_others_are_cancelled_and_it_is_said(self) -> None:
        backfill = start(hourly())
        first = Run.objects.order_by("due_at")[0]
        with second_connection() as other:
            other.execute("SELECT 1 FROM scheduling_run WHERE id = %s FOR UPDATE", [first.pk])
            cancelling = in_thread(lambda: backfilling.cancel(backfill.pk, by="ben"))
            with pytest.raises(RowLockedError, match="locked: cancel it again"):
                cancelling.result(5)
            assert states(backfill) == ["held", *["cancelled"] * 4]
        assert backfilling.cancel(backfill.pk, by="ben").states == {"cancelled": 5}

    @pytest.mark.parametrize("state", [State.SCHEDULED, State.RUNNING])
    def test_a_run_alone_is_refused_in_the_end(self, state: State) -> None:
        held = run(state)
        with second_connection() as other:
            other.execute("SELECT 1 FROM scheduling_run FOR UPDATE")
            cancelling = in_thread(lambda: cancel(held.pk, by="ben"))
            with pytest.raises(RowLockedError, match=f"{held.pk} is locked by another"):
                cancelling.result(5)
        assert cancel(held.pk, by="ben").state != State.SCHEDULED

    def test_a_revoke_that_should_end_it_says_so_too(self) -> None:
        held = run()
        with second_connection() as other:
            other.execute("SELECT 1 FROM scheduling_run FOR UPDATE")
            revoking = in_thread(lambda: AsyncResult(str(held.pk)).revoke(terminate=True))
            with pytest.raises(RowLockedError, match="cancel it again"):
                revoking.result(5)
