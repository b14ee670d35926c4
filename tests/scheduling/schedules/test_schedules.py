from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any

import pytest
from django.db import connection
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
)

from scheduling import clock, schedules
from scheduling.errors import EnqueueError, ScheduleError
from scheduling.models import (
    CatchUp,
    ManagedBy,
    Origin,
    Overlap,
    Plan,
    Policy,
    Priority,
    Run,
    Schedule,
)
from scheduling.schedules import Cron, Every, Once, planning
from scheduling.schedules.standing import Standing, standing
from tests.scheduling.ledger import YEAR

SWEEP = "notifications.tasks.sweep"
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOURLY = Every(timedelta(hours=1))

pytestmark = pytest.mark.django_db


def add(name: str = "nightly", rule: Cron | Every | Once = HOURLY, **options: Any) -> Schedule:
    return schedules.add(name, options.pop("task", SWEEP), rule, by="ann", **options)


def fresh(schedule: PeriodicTask) -> Standing:
    return standing(schedules.named(schedule.name))


def mark_as_code(schedule: PeriodicTask) -> None:
    Policy.objects.update_or_create(schedule=schedule, defaults={"managed_by": ManagedBy.CODE})


class TestAdd:
    def test_it_makes_the_rows_of_a_cron_rule(self) -> None:
        schedule = add(rule=Cron("0 6 * * mon-fri", "Europe/Berlin"))
        schedule.refresh_from_db()
        assert str(schedule.crontab) == "0 6 * * mon-fri (m/h/dM/MY/d) Europe/Berlin"
        assert (schedule.enabled, schedule.one_off, schedule.args) == (True, False, "[]")
        assert Plan.objects.get(schedule=schedule).needs_plan

    @pytest.mark.parametrize(
        ("step", "every", "period"),
        [
            (timedelta(minutes=5), 5, "minutes"),
            (timedelta(seconds=90), 90, "seconds"),
            (timedelta(minutes=120), 2, "hours"),
            (timedelta(weeks=1), 7, "days"),
            (timedelta(milliseconds=1500), 1_500_000, "microseconds"),
        ],
    )
    def test_an_interval_has_the_largest_period_that_is_exact(
        self, step: timedelta, every: int, period: str
    ) -> None:
        interval = add(rule=Every(step)).interval
        assert (interval.every, interval.period) == (every, period)

    def test_a_single_instant_is_a_one_off(self) -> None:
        schedule = add(rule=Once(NOW + timedelta(hours=2)), now=NOW)
        assert schedule.one_off
        assert schedule.clocked.clocked_time == datetime(2026, 11, 20, 14, tzinfo=UTC)

    def test_an_equal_rule_that_exists_is_shared(self) -> None:
        for name in ("one", "two"):
            add(name, Cron("0 6 * * *", "UTC"))
            add(f"{name} interval", HOURLY)
            add(f"{name} clocked", Once(NOW + timedelta(1)), now=NOW)
        assert CrontabSchedule.objects.filter(hour="6", minute="0").count() == 1
        assert IntervalSchedule.objects.filter(period="hours").count() == 1
        assert ClockedSchedule.objects.count() == 1

    def test_a_policy_is_written_only_for_what_is_not_the_default(self) -> None:
        assert not Policy.objects.filter(schedule=add("plain")).exists()
        schedule = add(
            "treated", catch_up=CatchUp.ALL, overlap=Overlap.SKIP, spread=timedelta(minutes=5)
        )
        policy = Policy.objects.get(schedule=schedule)
        assert (policy.catch_up, policy.overlap, policy.max_attempts) == ("all", "skip", None)

    def test_it_keeps_what_to_call_and_how(self) -> None:
        schedule = add(args=["2026-11-20"], priority=Priority.HIGH, queue="mail", description="why")
        schedule.refresh_from_db()
        assert (schedule.args, schedule.kwargs) == ('["2026-11-20"]', "{}")
        assert (schedule.priority, schedule.queue, schedule.description) == (3, "mail", "why")

    def test_an_interval_with_a_start_counts_from_there(self) -> None:
        schedule = add(start=datetime(YEAR, 1, 1, 0, 30, tzinfo=UTC))
        first, second = schedules.next_occurrences(schedule, 2)
        assert first.due_at == datetime(YEAR, 1, 1, 0, 30, tzinfo=UTC)
        assert second.due_at == datetime(YEAR, 1, 1, 1, 30, tzinfo=UTC)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"task": "notifications.tasks.swep"}, EnqueueError, "did you mean .*tasks.sweep"),
            ({"args": [1, 2, 3]}, EnqueueError, "arguments do not fit"),
            ({"kwargs": {"nobody": 1}}, EnqueueError, "arguments do not fit"),
            ({"rule": Cron("61 * * * *", "UTC")}, ScheduleError, "minute '61'"),
            ({"rule": Cron("* * * *", "UTC")}, ScheduleError, "five"),
            ({"rule": Cron("0 0 31 2 *", "UTC")}, ScheduleError, "does not fire"),
            ({"rule": Cron("0 0 * * *", "Mars/Base")}, ScheduleError, "not a time zone"),
            ({"rule": Cron(",".join(["1"] * 200) + " * * * *", "UTC")}, ScheduleError, "longer"),
            ({"rule": Every(timedelta(0))}, ScheduleError, "longer than nothing"),
            ({"rule": Every(timedelta(microseconds=1))}, ScheduleError, "0.000001 s is shorter"),
            ({"rule": Every(timedelta(seconds=0.9999))}, ScheduleError, "0.9999 s is shorter"),
            ({"rule": Every(timedelta(days=4000))}, ScheduleError, "does not fire"),
            ({"rule": Every(timedelta(days=30_000, microseconds=1))}, ScheduleError, "too long"),
            ({"rule": Once(datetime(2020, 1, 1, tzinfo=UTC))}, ScheduleError, "is in the past"),
            ({"name": ""}, ScheduleError, "name: This field cannot be blank"),
            ({"name": "n" * 201}, ScheduleError, "name: .*at most 200"),
            ({"owner": "o@e.org," * 99}, ScheduleError, "owner: .*at most 500"),
            ({"owner": "the team"}, ScheduleError, "owner: 'the' is not a mail address"),
            ({"pause_after_failures": 0}, ScheduleError, "pause_after_failures: .*1"),
            ({"catch_up": "some"}, ScheduleError, "catch_up: .*'some' is not a valid choice"),
            ({"max_attempts": 0}, ScheduleError, "max_attempts: .*greater than or equal to 1"),
        ],
    )
    def test_it_refuses_what_cannot_work_and_changes_nothing(
        self, options: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        before = PeriodicTask.objects.count(), CrontabSchedule.objects.count()
        with pytest.raises(error, match=message):
            add(**options)
        assert (PeriodicTask.objects.count(), CrontabSchedule.objects.count()) == before

    def test_it_refuses_a_name_that_is_taken(self) -> None:
        add("nightly")
        with pytest.raises(ScheduleError, match="there is a schedule 'nightly' already"):
            add("nightly", Cron("1 2 3 * *", "UTC"))
        assert not CrontabSchedule.objects.filter(day_of_month="3").exists()


@pytest.mark.django_db(transaction=True)
def test_of_those_who_add_one_name_at_once_one_succeeds() -> None:
    everybody_is_here = Barrier(4)

    def race(_: int) -> str:
        everybody_is_here.wait(timeout=10)
        try:
            return str(add("nightly").name)
        except ScheduleError as error:
            return str(error)
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        answers = sorted(pool.map(race, range(4)))
    assert answers[0] == "nightly"
    assert {"there is a schedule 'nightly' already" in answer for answer in answers[1:]} == {True}
    assert PeriodicTask.objects.filter(name="nightly").count() == 1


class TestPause:
    def test_it_says_by_whom_why_and_until_when(self) -> None:
        schedule, until = add(), NOW + timedelta(days=1)
        assert schedules.pause(schedule, by="ann", until=until, reason="freeze", now=NOW)
        policy = Policy.objects.get(schedule=schedule)
        assert (policy.paused_at, policy.paused_until) == (NOW, until)
        assert (policy.paused_by, policy.pause_reason) == ("ann", "freeze")

    def test_it_keeps_the_rest_of_the_policy(self) -> None:
        schedule = add(overlap=Overlap.SKIP)
        schedules.pause(schedule, by="ann")
        assert Policy.objects.get(schedule=schedule).overlap == Overlap.SKIP

    def test_the_last_word_on_end_and_reason_counts(self) -> None:
        schedule = add()
        schedules.pause(schedule, by="ann", until=NOW + timedelta(1), reason="freeze", now=NOW)
        assert not schedules.pause(schedule, by="bob", now=NOW + timedelta(hours=1))
        policy = Policy.objects.get(schedule=schedule)
        assert (policy.paused_at, policy.paused_until) == (NOW, None)
        assert (policy.paused_by, policy.pause_reason) == ("bob", "")

    def test_a_pause_that_is_over_is_none(self) -> None:
        schedule = add()
        schedules.pause(schedule, by="ann", until=NOW + timedelta(hours=1), now=NOW)
        later = NOW + timedelta(hours=2)
        assert not schedules.resume(schedule, by="ann", now=later)
        assert schedules.pause(schedule, by="bob", now=later)
        assert Policy.objects.get(schedule=schedule).paused_at == later

    def test_it_refuses_an_end_in_the_past(self) -> None:
        with pytest.raises(ScheduleError, match="would be over already"):
            schedules.pause(add(), by="ann", until=NOW, now=NOW)

    def test_it_refuses_a_reason_that_is_too_long(self) -> None:
        with pytest.raises(ScheduleError, match=r"pause_reason: .*at most 500"):
            schedules.pause(add(), by="ann", reason="r" * 501)

    def test_it_refuses_a_schedule_that_has_gone(self) -> None:
        schedule = add()
        PeriodicTask.objects.filter(pk=schedule.pk).delete()
        with pytest.raises(ScheduleError, match="has been removed"):
            schedules.pause(schedule, by="ann")

    def test_the_plan_is_made_anew_and_is_empty(self) -> None:
        schedule = add()
        planning.plan_changed()
        schedules.pause(schedule, by="ann")
        assert Plan.objects.get(schedule=schedule).needs_plan
        assert fresh(schedule).next_due_at is None

    def test_resume_plans_from_now(self) -> None:
        schedule = add()
        schedules.pause(schedule, by="ann", reason="freeze")
        planning.plan_changed()
        assert schedules.resume(schedule, by="bob")
        due = fresh(schedule).next_due_at
        assert due is not None
        assert timedelta(0) < due - clock.now() <= timedelta(hours=1)
        policy = Policy.objects.get(schedule=schedule)
        assert (policy.paused_at, policy.pause_reason, policy.paused_by) == (None, "", "")

    def test_resuming_what_is_not_paused_changes_nothing(self) -> None:
        schedule = add()
        planning.plan_changed()
        assert not schedules.resume(schedule, by="ann")
        assert not Plan.objects.get(schedule=schedule).needs_plan


class TestRemove:
    def test_plan_and_policy_go_and_runs_stay(self) -> None:
        schedule = add(owner="ann@example.org")
        pk = schedule.pk
        run = Run.objects.create(
            schedule_id=pk, task=SWEEP, origin=Origin.SCHEDULE, queue="celery", due_at=NOW,
            run_at=NOW,
        )  # fmt: skip
        schedules.remove(schedule, by="ann")
        assert not PeriodicTask.objects.filter(pk=pk).exists()
        assert not Plan.objects.filter(pk=pk).exists()
        assert not Policy.objects.filter(pk=pk).exists()
        assert Run.objects.filter(pk=run.pk, schedule_id=pk).exists()

    def test_a_schedule_of_code_stays(self) -> None:
        schedule = add()
        mark_as_code(schedule)
        with pytest.raises(ScheduleError, match="change CELERY_BEAT_SCHEDULE"):
            schedules.remove(schedule, by="ann")
        assert PeriodicTask.objects.filter(pk=schedule.pk).exists()

    def test_a_schedule_of_code_can_be_paused_and_resumed(self) -> None:
        schedule = add()
        mark_as_code(schedule)
        assert schedules.pause(schedule, by="ann")
        assert schedules.resume(schedule, by="ann")

    def test_the_second_time_says_so(self) -> None:
        schedule = add()
        schedules.remove(PeriodicTask.objects.get(pk=schedule.pk), by="ann")
        with pytest.raises(ScheduleError, match="has been removed"):
            schedules.remove(schedule, by="bob")


class TestNames:
    def test_an_unknown_one_gets_the_nearest(self) -> None:
        add("nightly-sweep")
        with pytest.raises(ScheduleError, match="did you mean 'nightly-sweep'"):
            schedules.named("nighty-sweep")

    def test_a_strange_one_gets_the_way_to_find_them(self) -> None:
        with pytest.raises(ScheduleError, match="`schedule list` shows all"):
            schedules.named("zzz")


class TestWhatComesNext:
    def test_occurrences_start_later_by_the_schedule_s_spread(self) -> None:
        schedule = add(rule=Cron("0 6 * * *", "UTC"), spread=timedelta(hours=1))
        offset = planning.spread_offset(schedule.pk, timedelta(hours=1))
        (occurrence,) = schedules.next_occurrences(schedules.named("nightly"), 1, NOW)
        assert occurrence.due_at == datetime(2026, 11, 21, 6, tzinfo=UTC)
        assert occurrence.run_at == occurrence.due_at + offset

    def test_changes_of_the_clocks_are_marked(self) -> None:
        schedule = add(rule=Cron("30 2 * * *", "Europe/Berlin"))
        shifted, usual = schedules.next_occurrences(
            schedule, 2, datetime(2027, 3, 27, 12, tzinfo=UTC)
        )
        assert (shifted.local.isoformat(), shifted.dst) == ("2027-03-28T03:00:00+02:00", "shifted")
        assert (usual.local.isoformat(), usual.dst) == ("2027-03-29T02:30:00+02:00", "")

    def test_a_rule_that_ends_has_fewer(self) -> None:
        schedule = add(rule=Once(datetime(YEAR, 1, 1, tzinfo=UTC)))
        assert len(schedules.next_occurrences(schedule, 5)) == 1
        assert not schedules.next_occurrences(schedule, 5, datetime(YEAR, 1, 1, tzinfo=UTC))

    def test_what_lies_beyond_all_years_is_left_out(self) -> None:
        schedule = add(rule=Every(timedelta(minutes=5)), spread=timedelta(days=1))
        assert not schedules.next_occurrences(schedule, 5, datetime(9999, 12, 31, tzinfo=UTC))

    def test_a_rule_that_cannot_be_read_is_named(self) -> None:
        schedule = add(rule=Cron("0 6 * * *", "UTC"))
        CrontabSchedule.objects.update(minute="sixty")
        with pytest.raises(ScheduleError, match=r"schedule 'nightly': .*sixty"):
            schedules.next_occurrences(schedules.named("nightly"), 1)
        assert "sixty" in fresh(schedule).problem

    @pytest.mark.parametrize(
        "rule",
        [HOURLY, Cron("*/7 3 * * *", "Europe/Berlin"), Once(datetime(YEAR, 1, 1, tzinfo=UTC))],
    )
    def test_what_is_shown_before_beat_has_planned_is_what_beat_plans(
        self, rule: Cron | Every | Once
    ) -> None:
        schedule = add(rule=rule)
        shown = fresh(schedule).next_due_at
        planning.plan_changed()
        assert shown is not None
        assert Plan.objects.get(schedule=schedule).next_due_at == shown

    def test_an_edited_interval_is_shown_as_beat_will_plan_it(self) -> None:
        schedule = add(rule=HOURLY)
        planning.plan_changed()
        IntervalSchedule.objects.update(every=5, period="minutes")
        shown = fresh(schedule).next_due_at
        (first,) = schedules.next_occurrences(schedules.named("nightly"), 1)
        planning.plan_changed()
        assert Plan.objects.get(schedule=schedule).next_due_at == shown == first.due_at

    def test_what_was_due_before_an_edit_still_stands(self) -> None:
        schedule = add(rule=HOURLY)
        planning.plan_changed()
        overdue = clock.now() - timedelta(minutes=1)
        with connection.cursor() as cursor:
            cursor.execute("UPDATE scheduling_plan SET next_due_at = %s", [overdue])
        IntervalSchedule.objects.update(every=5, period="minutes")
        assert fresh(schedule).next_due_at == overdue

    def test_a_disabled_schedule_has_nothing_to_come(self) -> None:
        schedule = add()
        PeriodicTask.objects.filter(pk=schedule.pk).update(enabled=False)
        assert fresh(schedule).next_due_at is None
        assert len(schedules.next_occurrences(schedule, 3)) == 3
