"""prune: deleted runs, kept runs, and concurrent work that it does not disturb."""

import time
from collections import Counter
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery import current_app
from django_celery_beat.models import ClockedSchedule
from django_celery_results.models import GroupResult, TaskResult
from pytest_django import Settings

from scheduling import clock
from scheduling.beat.firing import fire_due
from scheduling.history.pruning import count_old, kept_for, prune, prune_results
from scheduling.history.replaying import replay
from scheduling.ids import uuid7
from scheduling.models import FINAL, UNFINISHED, Backfill, Origin, Plan, Run, State
from scheduling.tasks import prune as prune_job
from tests.scheduling.ledger import (
    LONG_AGO,
    in_thread,
    plan_of,
    run,
    schedule,
    second_connection,
    set_plan,
)

DAY = timedelta(days=1)
ALL_OLDER_THAN_A_DAY = dict.fromkeys(FINAL, DAY)

pytestmark = pytest.mark.django_db


def days_ago(days: float) -> datetime:
    return clock.now() - timedelta(days=days)


def ended(state: State = State.SUCCEEDED, days: float = 2, **columns: Any) -> Run:
    return run(state, finished_at=days_ago(days), **columns)


def is_there(made: Run) -> bool:
    return Run.objects.filter(pk=made.pk).exists()


def result_of(task_id: object, days: float = 2) -> TaskResult:
    stored = TaskResult.objects.create(task_id=str(task_id), status="SUCCESS")
    TaskResult.objects.filter(pk=stored.pk).update(date_done=days_ago(days))
    return stored


class TestWhatGoes:
    @pytest.mark.parametrize("state", FINAL)
    def test_runs_that_ended_before_their_states_period(self, state: State) -> None:
        old, young = ended(state, 2), ended(state, 0.9)
        assert prune(clock.now(), ALL_OLDER_THAN_A_DAY) == Counter({state: 1})
        assert (is_there(old), is_there(young)) == (False, True)

    @pytest.mark.parametrize("state", UNFINISHED)
    def test_unfinished_ones_never_however_old(self, state: State) -> None:
        made = run(state, due_at=LONG_AGO, run_at=LONG_AGO, created_at=LONG_AGO)
        assert not prune(clock.now(), dict.fromkeys(State, timedelta(seconds=1))).total()
        assert is_there(made)

    def test_each_state_has_its_own_period(self) -> None:
        failed, succeeded = ended(State.FAILED, 5), ended(State.SUCCEEDED, 5)
        prune(clock.now(), {State.FAILED: 10 * DAY, State.SUCCEEDED: DAY})
        assert (is_there(failed), is_there(succeeded)) == (True, False)

    def test_their_results_go_with_them_and_no_others(self) -> None:
        old, young = ended(days=2), ended(days=0.5)
        for made in (old, young):
            result_of(made.pk)
        result_of("a plain message")
        prune(clock.now(), ALL_OLDER_THAN_A_DAY)
        left = TaskResult.objects.values_list("task_id", flat=True)
        assert set(left) == {str(young.pk), "a plain message"}

    def test_batches_go_on_until_nothing_is_left(self) -> None:
        for n in range(7):
            ended(days=2 + n % 3)
        assert prune(clock.now(), ALL_OLDER_THAN_A_DAY, limit=3).total() == 7
        assert not Run.objects.exists()

    def test_many_that_ended_at_the_same_instant_go_too(self) -> None:
        instant = days_ago(3)
        for _ in range(7):
            run(State.SKIPPED, finished_at=instant)
        assert prune(clock.now(), ALL_OLDER_THAN_A_DAY, limit=2).total() == 7

    def test_counting_says_the_same_and_deletes_nothing(self) -> None:
        for state in (State.FAILED, State.FAILED, State.EXPIRED):
            ended(state)
        counted = count_old(clock.now(), ALL_OLDER_THAN_A_DAY)
        assert (counted[State.FAILED], counted[State.EXPIRED], counted.total()) == (2, 1, 3)
        assert Run.objects.count() == 3

    def test_a_period_beyond_all_history_is_no_error(self) -> None:
        ended()
        assert not prune(clock.now(), {State.SUCCEEDED: timedelta.max}).total()

    def test_a_backfill_goes_with_the_last_of_its_runs(self) -> None:
        def backfill(*runs: Run) -> Backfill:
            made = Backfill.objects.create(
                schedule_id=7, schedule_name="x", since=LONG_AGO, until=LONG_AGO, run_count=1
            )
            Backfill.objects.filter(pk=made.pk).update(created_at=days_ago(3))
            Run.objects.filter(pk__in=[one.pk for one in runs]).update(backfill_id=made.pk)
            return made

        over, going_on = backfill(ended(days=2)), backfill(ended(days=2), run())
        prune(clock.now(), ALL_OLDER_THAN_A_DAY)
        assert list(Backfill.objects.all()) == [going_on]
        assert over != going_on


class TestWhatStays:
    def test_the_run_of_the_last_occurrence_of_a_schedule(self) -> None:
        row = schedule()
        set_plan(row, None, last_due_at=days_ago(10))
        last = plan_of(row).last_due_at
        assert last is not None
        common = {"schedule_id": row.pk, "origin": Origin.SCHEDULE, "days": 9}
        kept = ended(due_at=last, **common)
        gone = [ended(due_at=last - n * DAY, **common) for n in (1, 2)]
        asked_for = ended(schedule_id=row.pk, due_at=last)
        prune(clock.now(), ALL_OLDER_THAN_A_DAY)
        assert is_there(kept)
        assert not any(map(is_there, [*gone, asked_for]))

    def test_so_nothing_is_fired_twice(self) -> None:
        """A one-off whose plan is made to fire its instant again is stopped by its row."""
        rule = ClockedSchedule.objects.create(clocked_time=days_ago(5))
        row = schedule(clocked=rule, one_off=True)
        set_plan(row, rule.clocked_time)
        fire_due(LONG_AGO)
        Run.objects.update(state=State.SUCCEEDED, finished_at=days_ago(5))
        prune(clock.now(), ALL_OLDER_THAN_A_DAY)
        set_plan(row, rule.clocked_time, done=False)
        fire_due(LONG_AGO)
        assert Run.objects.count() == 1

    def test_it_goes_when_its_schedule_is_gone(self) -> None:
        row = schedule()
        made = ended(schedule_id=row.pk, origin=Origin.SCHEDULE)
        set_plan(row, None, last_due_at=made.due_at)
        assert not prune(clock.now(), ALL_OLDER_THAN_A_DAY).total()
        row.delete()
        assert not Plan.objects.filter(pk=made.schedule_id).exists()
        assert prune(clock.now(), ALL_OLDER_THAN_A_DAY).total() == 1

    def test_a_replay_stays_as_long_as_the_run_that_it_repeats(self) -> None:
        old = ended(State.FAILED, 50)
        again = replay(old.pk, by="ana")
        Run.objects.filter(pk=again.pk).update(state=State.SUCCEEDED, finished_at=days_ago(40))
        periods = {State.FAILED: 100 * DAY, State.SUCCEEDED: 10 * DAY}
        assert not prune(clock.now(), periods).total()
        periods[State.FAILED] = 45 * DAY
        prune(clock.now(), periods)
        assert not is_there(old)
        prune(clock.now(), periods)
        assert not is_there(again)


class TestTheDailyJob:
    def test_its_periods_are_settings_and_zero_is_for_ever(self, settings: Settings) -> None:
        assert kept_for()[State.SUCCEEDED] == timedelta(days=90)
        assert kept_for()[State.FAILED] == timedelta(days=365)
        settings.KEEP_FAILED = timedelta(0)
        assert set(kept_for()) == set(FINAL) - {State.FAILED}

    def test_it_says_what_it_deleted(self) -> None:
        for days in (80, 91):
            ended(State.SUCCEEDED, days)
            ended(State.EXPIRED, days)
        ended(State.FAILED, 364)
        assert prune_job.run() == {"succeeded": 1, "expired": 1}

    def test_it_is_a_schedule_of_the_code(self) -> None:
        from scheduling.models import Schedule
        from scheduling.schedules.from_code import sync

        sync()
        made = Schedule.objects.get(name="scheduling.prune")
        assert (made.task, made.priority, made.enabled) == (prune_job.name, 9, True)
        assert prune_job.name in current_app.tasks


class TestResultsOfPlainMessages:
    def test_what_has_expired_goes_but_what_a_run_has_stays(self) -> None:
        made = ended(days=1000)
        result_of(made.pk, 1000)
        for task_id in (uuid7(), "any text", str(made.pk).upper() + "x"):
            result_of(task_id, 2)
        result_of(uuid7(), 0.5)
        assert prune_results(days_ago(1)) == 3
        assert TaskResult.objects.count() == 2

    def test_it_goes_past_what_stays_batch_by_batch(self) -> None:
        for n in range(9):
            result_of(ended().pk if n % 2 else uuid7(), 2 + n % 3)
        assert prune_results(days_ago(1), limit=2) == 5
        assert TaskResult.objects.count() == 4

    def test_results_of_one_instant_are_all_looked_at(self) -> None:
        for _ in range(5):
            result_of(uuid7())
        TaskResult.objects.update(date_done=days_ago(2))
        assert prune_results(days_ago(1), limit=2) == 5

    def test_celerys_own_clean_up_does_that(self) -> None:
        made = ended(days=5)
        result_of(made.pk, 5)
        result_of(uuid7(), 5)
        GroupResult.objects.create(group_id="g")
        GroupResult.objects.update(date_done=days_ago(5))
        current_app.tasks["celery.backend_cleanup"].run()
        assert list(TaskResult.objects.values_list("task_id", flat=True)) == [str(made.pk)]
        assert not GroupResult.objects.exists()


@pytest.mark.django_db(transaction=True)
class TestBesideOthers:
    def test_a_row_that_somebody_holds_is_left_for_the_next_time(self) -> None:
        held, free = ended(), ended()
        with second_connection() as other:
            other.execute("SELECT 1 FROM scheduling_run WHERE id = %s FOR UPDATE", [held.pk])
            deleting = in_thread(lambda: prune(clock.now(), ALL_OLDER_THAN_A_DAY).total())
            assert deleting.result(5) == 1
        assert (is_there(held), is_there(free)) == (True, False)
        assert prune(clock.now(), ALL_OLDER_THAN_A_DAY).total() == 1

    def test_two_at_once_share_the_work(self) -> None:
        for _ in range(40):
            ended()

        def delete() -> int:
            return prune(clock.now(), ALL_OLDER_THAN_A_DAY, limit=3).total()

        both = [in_thread(delete) for _ in range(2)]
        assert sum(one.result(20) for one in both) == 40
        assert not Run.objects.exists()

    def test_each_batch_is_committed_by_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for _ in range(5):
            ended()

        def killed(_: float) -> None:
            raise KeyboardInterrupt

        # Not time's own: threads that earlier tests have left sleep too.
        instead = SimpleNamespace(monotonic=time.monotonic, sleep=killed)
        monkeypatch.setattr("scheduling.history.pruning.time", instead)
        with pytest.raises(KeyboardInterrupt):
            prune(clock.now(), ALL_OLDER_THAN_A_DAY, limit=2)
        assert Run.objects.count() == 3
