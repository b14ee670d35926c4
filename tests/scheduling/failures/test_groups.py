"""Beat counts failures in their groups, finds news, and pauses schedules."""

from datetime import timedelta
from typing import Any

import pytest
import redis
from django.db import connection, transaction
from django_celery_beat.models import PeriodicTask
from pytest_django import Settings

from scheduling import clock, schedules
from scheduling.beat.looking import LONG_AGO
from scheduling.execution.finishing import finish
from scheduling.failures import alerts, groups, streaks
from scheduling.failures.groups import reopen, resolve
from scheduling.models import (
    Failure,
    FailureGroup,
    News,
    Origin,
    Plan,
    Policy,
    Run,
    State,
)
from scheduling.runs.outcomes import Outcome
from tests.scheduling.beat.test_scheduler import make
from tests.scheduling.ledger import (
    ADD,
    in_thread,
    is_blocked,
    run,
    schedule,
    second_connection,
    set_plan,
    write_successes,
)
from tests.waiting import wait_for

ANN = "ann@example.org"


@pytest.fixture(autouse=True)
def _everybody_is_told(settings: Settings) -> None:
    settings.ALERTS_TO = [ANN]


def fail(row: PeriodicTask | None = None, error: str = "ValueError: x", **columns: Any) -> Run:
    """End a run as failed, one of the schedule's if there is one."""
    if row is not None:
        columns = {"schedule_id": row.pk, "schedule_name": row.name, "task": row.task, **columns}
    made = run(State.RUNNING, **columns)
    assert finish(made.pk, 1, Outcome(State.FAILED, error, error, failed=True))
    return made


def succeed(row: PeriodicTask) -> None:
    made = run(State.RUNNING, schedule_id=row.pk, schedule_name=row.name)
    assert finish(made.pk, 1, Outcome(State.SUCCEEDED))


def settle(limit: int = 1000) -> int:
    return groups.settle(LONG_AGO, limit)


def group() -> FailureGroup:
    return FailureGroup.objects.get()


def told() -> None:
    """Take the news, as if messages had been sent now."""
    alerts.write_messages()


def told_long_ago() -> None:
    told()
    FailureGroup.objects.update(told_at=clock.now() - timedelta(days=1))


@pytest.mark.django_db
class TestCounting:
    def test_failures_of_one_kind_are_one_group(self) -> None:
        nightly, hourly = schedule("nightly"), schedule("hourly")
        first = fail(nightly)
        last = [fail(nightly), fail(hourly), fail(error="ValueError: the last")][-1]
        assert settle() == 4
        found = group()
        assert (found.task, found.exception, found.place, found.count) == (
            ADD, "ValueError", "", 4,
        )  # fmt: skip
        assert (found.last_error, found.last_run_id) == ("ValueError: the last", last.pk)
        assert found.schedules == ["nightly", "hourly"]
        ended = Run.objects.get(pk=first.pk).finished_at
        assert ended is not None
        assert abs(found.first_seen_at - ended) < timedelta(seconds=1)
        assert found.last_seen_at > found.first_seen_at

    def test_each_failure_is_counted_once(self) -> None:
        fail()
        assert [settle(), settle()] == [1, 0]
        fail()
        settle()
        assert group().count == 2
        assert not Failure.objects.exists()

    def test_other_types_and_tasks_are_other_groups(self) -> None:
        fail()
        fail(error="KeyError: x")
        fail(task="other.task")
        settle()
        assert FailureGroup.objects.count() == 3

    def test_what_is_more_than_a_batch_is_left_for_the_next(self) -> None:
        for _ in range(3):
            fail()
        assert [settle(2), settle(2)] == [2, 1]
        assert group().count == 3

    def test_the_names_of_many_schedules_are_bounded(self) -> None:
        for n in range(105):
            fail(schedule_id=n, schedule_name=f"s{n}")
        settle()
        assert len(group().schedules) == len(group().untold) == groups.SCHEDULES_MAX

    def test_odd_and_endless_names_are_counted_too(self) -> None:
        error = f"{'Ä' * 10_000}: \0 \ud800"
        fail(error=error)
        fail(error=error)
        settle()
        assert group().count == 2


@pytest.mark.django_db(transaction=True)
class TestCountingBesideOthers:
    def test_two_beats_count_everything_once(self) -> None:
        for n in range(300):
            fail(error=f"E{n % 30}: x")
        beats = [in_thread(lambda: sum(settle(10) for _ in range(60))) for _ in range(3)]
        assert sum(beat.result(60) for beat in beats) == 300
        assert sum(FailureGroup.objects.values_list("count", flat=True)) == 300
        assert FailureGroup.objects.count() == 30

    def test_a_group_that_somebody_holds_waits_and_stops_no_other(self) -> None:
        fail()
        settle()
        fail()
        fail(error="KeyError: x")
        with second_connection() as other:
            other.execute("UPDATE scheduling_failuregroup SET resolved_by = 'ann'")
            assert settle() == 1
            assert Failure.objects.count() == 1
        assert settle() == 1
        assert set(FailureGroup.objects.values_list("exception", "count")) == {
            ("ValueError", 2), ("KeyError", 1),
        }  # fmt: skip

    def test_a_thousand_that_fail_at_once_wait_for_nobody(self) -> None:
        """A transaction that reads or settles the group delays no run's end."""
        fail()
        settle()
        made = run(State.RUNNING)
        with second_connection() as other:
            other.execute("SELECT * FROM scheduling_failuregroup FOR UPDATE")
            other.execute("SELECT * FROM scheduling_policy FOR UPDATE")
            ending = in_thread(lambda: finish(made.pk, 1, Outcome(State.FAILED, "r", "E: x")))
            assert ending.result(2)


@pytest.mark.django_db
class TestNews:
    def news(self) -> str:
        settle()
        return str(group().news)

    def test_a_new_kind_of_failure_is_news(self) -> None:
        fail()
        assert self.news() == News.NEW

    def test_with_nobody_to_tell_nothing_is(self, settings: Settings) -> None:
        settings.ALERTS_TO = []
        fail(schedule())
        assert self.news() == ""

    def test_an_owner_is_somebody(self, settings: Settings) -> None:
        settings.ALERTS_TO = []
        fail(schedule(policy={"owner": ANN}))
        assert self.news() == News.NEW

    def test_what_was_told_of_is_news_no_more(self) -> None:
        row = schedule()
        fail(row)
        assert self.news() == News.NEW
        told()
        for _ in range(5):
            fail(row)
        assert self.news() == ""

    @pytest.mark.parametrize(("failures", "news"), [(1, ""), (2, News.IN_ROW), (5, News.IN_ROW)])
    def test_three_in_a_row_are_news_when_it_was_told_long_ago(
        self, failures: int, news: str
    ) -> None:
        row = schedule()
        fail(row)
        settle()
        told_long_ago()
        for _ in range(failures):
            fail(row)
        assert self.news() == news

    def test_a_success_between_them_ends_the_row(self) -> None:
        row = schedule()
        fail(row)
        settle()
        told_long_ago()
        fail(row)
        succeed(row)
        fail(row)
        assert self.news() == ""

    def test_a_task_without_a_schedule_fails_in_a_row_too(self) -> None:
        fail()
        settle()
        told_long_ago()
        fail()
        assert self.news() == ""
        fail()
        assert self.news() == News.IN_ROW

    def test_what_other_tasks_do_meanwhile_ends_no_row(self) -> None:
        fail()
        settle()
        told_long_ago()
        for _ in range(2):
            write_successes("other.task", 1000)
            fail()
        assert self.news() == News.IN_ROW

    @pytest.mark.usefixtures("bare_runs")
    def test_only_the_newest_runs_of_the_task_are_read(self) -> None:
        write_successes("other.task", 20_000)
        write_successes(ADD, 5000)
        with connection.cursor() as cursor:
            sql = f"EXPLAIN (ANALYZE, FORMAT JSON) {streaks.LAST_OF_TASK}"
            for task in (ADD, "never"):
                cursor.execute(sql, {"task": task, "length": 3})
                assert "'Index Name': 'run_of_task'" in str(cursor.fetchone()[0])

    def test_no_row_is_looked_for_where_the_setting_is_zero(self, settings: Settings) -> None:
        settings.ALERT_AFTER_FAILURES = 0
        fail()
        settle()
        told_long_ago()
        fail()
        assert self.news() == ""

    def test_one_that_was_quiet_for_long_has_come_back(self) -> None:
        fail()
        settle()
        told_long_ago()
        FailureGroup.objects.update(last_seen_at=clock.now() - timedelta(days=8))
        fail()
        assert self.news() == News.BACK

    def test_one_that_was_resolved_has_come_back_however_soon(self) -> None:
        fail()
        settle()
        told()
        assert resolve([group().pk], by="ann") == 1
        fail()
        assert self.news() == News.BACK
        assert (group().resolved_at, group().resolved_by) == (None, "")

    def test_resolving_and_reopening_say_whether_they_did_something(self) -> None:
        fail()
        settle()
        key = group().pk
        assert [resolve([key], by="a" * 200), resolve([key], by="b")] == [1, 0]
        assert group().resolved_by == "a" * 150
        assert [reopen([key], by="a"), reopen([key], by="a")] == [1, 0]

    @pytest.mark.parametrize("task", sorted(alerts.OWN_TASKS))
    def test_what_tells_of_failures_is_never_told_of(self, task: str) -> None:
        fail(task=task)
        assert self.news() == ""
        assert group().count == 1


def paused(row: PeriodicTask) -> bool:
    return Policy.objects.filter(schedules.paused(clock.now()), schedule=row).exists()


@pytest.mark.django_db
class TestPausing:
    @pytest.fixture
    def row(self) -> PeriodicTask:
        return schedule(policy={"pause_after_failures": 2, "owner": "ben@example.org"})

    def test_so_many_failures_in_a_row_pause_it_with_the_end_of_the_last(
        self, row: PeriodicTask
    ) -> None:
        fail(row)
        assert not paused(row)
        fail(row, "ValueError: the last \0 straw")
        policy = Policy.objects.get(schedule=row)
        assert paused(row)
        assert policy.paused_by == "truebeat"
        assert policy.pause_reason == (
            "2 runs in a row have failed; the last one: ValueError: the last \\x00 straw"
        )
        assert Plan.objects.get(schedule=row).needs_plan, "the trigger sees it, like a user's pause"

    def test_a_transaction_that_goes_back_pauses_nothing(self, row: PeriodicTask) -> None:
        fail(row)
        with transaction.atomic():
            fail(row)
            assert paused(row)
            transaction.set_rollback(True)
        assert not paused(row)

    def test_its_owner_is_told_once(self, row: PeriodicTask) -> None:
        fail(row)
        fail(row)
        assert [settle(), settle()] == [2, 0]
        (sent,) = Run.objects.filter(task=alerts.TELL)
        assert "ben@example.org" in sent.args
        assert "nightly is paused" in sent.args

    def test_several_that_end_at_once_pause_it_once(self, row: PeriodicTask) -> None:
        for _ in range(5):
            fail(row)
        settle()
        fail(row)
        settle()
        assert paused(row)
        assert Run.objects.filter(task=alerts.TELL).count() == 1

    def test_a_success_between_them_does_not(self, row: PeriodicTask) -> None:
        fail(row)
        succeed(row)
        fail(row)
        settle()
        assert not paused(row)

    @pytest.mark.parametrize("state", [State.CANCELLED, State.EXPIRED, State.SKIPPED])
    def test_what_never_ran_is_no_success(self, row: PeriodicTask, state: State) -> None:
        fail(row)
        run(state, schedule_id=row.pk, schedule_name=row.name)
        fail(row)
        settle()
        assert paused(row)

    def test_their_end_counts_and_not_when_they_were_due(self, row: PeriodicTask) -> None:
        planned = {"schedule_id": row.pk, "origin": Origin.SCHEDULE}
        early = run(State.RUNNING, due_at=LONG_AGO, **planned)
        fail(row, origin=Origin.SCHEDULE)
        assert finish(early.pk, 1, Outcome(State.SUCCEEDED))
        fail(row, origin=Origin.SCHEDULE, due_at=clock.now())
        settle()
        assert not paused(row)

    def test_a_backfill_is_no_part_of_it(self, row: PeriodicTask) -> None:
        fail(row, origin=Origin.BACKFILL)
        fail(row, origin=Origin.BACKFILL)
        settle()
        assert not paused(row)

    def test_another_schedules_failures_are_not_its_own(self, row: PeriodicTask) -> None:
        fail(row)
        fail(schedule("other"))
        settle()
        assert not paused(row)

    def test_without_the_policy_nothing_is_paused(self) -> None:
        row = schedule(policy={})
        for _ in range(9):
            fail(row)
        settle()
        assert not paused(row)

    def test_the_count_begins_anew_from_the_resume(self, row: PeriodicTask) -> None:
        fail(row)
        fail(row)
        settle()
        assert schedules.resume(row, by="ann")
        fail(row)
        settle()
        assert not paused(row)
        fail(row)
        settle()
        assert paused(row)

    def test_and_from_the_end_of_a_pause_that_had_one(self, row: PeriodicTask) -> None:
        fail(row)
        now = clock.now()
        Policy.objects.update(paused_at=now - timedelta(hours=1), paused_until=now)
        fail(row)
        settle()
        assert not paused(row)

    def test_a_users_pause_keeps_its_reason(self, row: PeriodicTask) -> None:
        schedules.pause(row, by="ann", reason="holiday")
        fail(row)
        fail(row)
        settle()
        assert Policy.objects.get(schedule=row).pause_reason == "holiday"

    def test_a_schedule_that_was_removed_meanwhile_is_no_trouble(self, row: PeriodicTask) -> None:
        fail(row)
        fail(row)
        row.delete()
        assert settle() == 2

    def test_what_comes_due_after_the_last_failure_does_not_fire(
        self, row: PeriodicTask, redis_client: redis.Redis
    ) -> None:
        fail(row)
        due = clock.now() + timedelta(milliseconds=200)
        set_plan(row, due)
        fail(row)
        before = Run.objects.count()
        wait_for(lambda: clock.now() > due)
        make().run_once()
        assert paused(row)
        assert Run.objects.exclude(task__in=alerts.OWN_TASKS).count() == before

    def test_a_failure_that_cannot_be_counted_stops_no_schedule(
        self, row: PeriodicTask, redis_client: redis.Redis
    ) -> None:
        fail(task="poison")
        set_plan(row, clock.now())
        with connection.cursor() as cursor:
            cursor.execute(
                "ALTER TABLE scheduling_failuregroup ADD CONSTRAINT p CHECK (task <> 'poison')"
            )
        make().run_once()
        assert Run.objects.filter(schedule_id=row.pk).count() == 1
        assert Failure.objects.count() == 1

    @pytest.mark.usefixtures("bare_runs")
    def test_of_a_million_runs_only_the_last_are_read(self, row: PeriodicTask) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO scheduling_run (id, schedule_id, origin, task, queue, due_at, run_at,"
                " state, finished_at) SELECT gen_random_uuid(), %s, 'schedule', 't', 'q',"
                " now() - n * interval '1 s', now(), 'failed', now() - n * interval '1 s'"
                " FROM generate_series(1, 20000) n", [row.pk],
            )  # fmt: skip
            cursor.execute("ANALYZE scheduling_run")
            sql = f"EXPLAIN (ANALYZE, FORMAT JSON) {streaks.LAST_OF_SCHEDULE}"
            cursor.execute(
                sql, {"schedule_id": row.pk, "since": clock.now(), "length": 3, "window": 103}
            )
            assert '"Index Name": "run_one_per_occurrence"' in str(cursor.fetchone()[0]).replace(
                "'", '"'
            )


@pytest.mark.django_db(transaction=True)
class TestPausingBesideOthers:
    @pytest.fixture
    def row(self) -> PeriodicTask:
        return schedule(policy={"pause_after_failures": 2})

    def test_a_policy_that_somebody_holds_stops_no_run_and_is_asked_again(
        self, row: PeriodicTask
    ) -> None:
        fail(row)
        with second_connection() as other:
            other.execute("UPDATE scheduling_policy SET owner = ''")
            in_thread(lambda: fail(row)).result(5)
            fail()
            assert settle() == 1, "the others do not wait for it"
            assert not is_blocked()
        assert not paused(row)
        assert settle() == 2
        assert paused(row)
        assert Run.objects.filter(task=alerts.TELL).count() == 1

    def test_a_plan_that_a_beat_holds_stops_no_run_either(self, row: PeriodicTask) -> None:
        fail(row)
        with second_connection() as other:
            other.execute("SELECT 1 FROM scheduling_plan FOR NO KEY UPDATE")
            in_thread(lambda: fail(row)).result(5)
            assert not paused(row)
        settle()
        assert paused(row)

    def test_the_last_of_several_that_end_at_the_same_moment_pauses_it(
        self, row: PeriodicTask
    ) -> None:
        """Each waits for the others' ends before it counts: two that do not see each other would
        both say that there is one failure."""
        for _ in range(5):
            Run.objects.all().delete()
            Failure.objects.all().delete()
            schedules.resume(row, by="ann")
            ends = [in_thread(lambda: fail(row)) for _ in range(2)]
            for end in ends:
                end.result(10)
            assert paused(row)

    def test_two_beats_pause_it_once(self, row: PeriodicTask) -> None:
        Policy.objects.filter(schedule=row).update(pause_after_failures=None)
        for _ in range(40):
            fail(row)
        Policy.objects.filter(schedule=row).update(pause_after_failures=2)
        beats = [in_thread(lambda: sum(settle(3) for _ in range(30))) for _ in range(3)]
        for beat in beats:
            beat.result(60)
        wait_for(lambda: settle() == 0 and not Failure.objects.exists())
        assert paused(row)
        assert Run.objects.filter(task=alerts.TELL).count() == 1
        assert group().count == 40
