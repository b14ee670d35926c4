from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django_celery_beat.models import CrontabSchedule, PeriodicTask
from hypothesis import given
from hypothesis import strategies as st

from scheduling import clock, recurrence
from scheduling.beat import firing
from scheduling.models import Plan
from scheduling.schedules import planning
from scheduling.schedules.planning import Changed, plan, spread_offset
from scheduling.schedules.rules import RuleFields
from scheduling.schedules.standing import standing
from tests.scheduling.ledger import (
    LONG_AGO,
    NOON,
    crontab,
    in_thread,
    interval,
    plan_of,
    schedule,
    second_connection,
    set_plan,
)

HOURLY = RuleFields("0", "*", "*", "*", "*", "UTC")
EVERY_WEEK = RuleFields(every=7, period="days")
CLOCKED = RuleFields(clocked_time=datetime(2026, 11, 20, 9, tzinfo=UTC))


def changed(fields: RuleFields = HOURLY, **columns: Any) -> Changed:
    values: dict[str, Any] = {
        "schedule_id": 1, "plan_from": NOON, "anchor_at": None, "last_due_at": None, "rule": "",
        "done": False,
        "enabled": True, "task": "t", "args": "[]", "kwargs": "{}", "paused_at": None,
        "paused_until": None, "fields": fields,
    }  # fmt: skip
    return Changed(**{**values, **columns})


def next_of(fields: RuleFields = HOURLY, **columns: Any) -> datetime | None:
    planned = plan(changed(fields, **columns))
    assert planned.error == ""
    return planned.next_due_at


def at(hour: int, minute: int = 0, *, day: int = 20) -> datetime:
    return datetime(2026, 11, day, hour, minute, tzinfo=UTC)


@pytest.mark.django_db
class TestIntervalsShorterThanASecond:
    def test_one_that_raw_sql_wrote_comes_each_second_and_says_so(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        row = schedule(interval=interval(1, "microseconds"), start_time=NOON)
        planning.plan_changed()
        plan = plan_of(row)
        assert plan.next_due_at is not None
        assert (plan.next_due_at - NOON) % timedelta(seconds=1) == timedelta(0)
        said = "every second (slowed: it asks for every microsecond) from"
        assert standing(row).rule.startswith(said)
        (slowed,) = [one for one in caplog.records if one.message == "intervals_slowed"]
        assert vars(slowed)["fields"] == {"plans": 1, "schedules": str(row.pk)}

    def test_a_second_and_more_is_kept_to(self) -> None:
        row = schedule(interval=interval(1_500_000, "microseconds"), start_time=NOON)
        assert standing(row).rule.startswith("every 1500 milliseconds")

    def test_fires_once_for_what_was_missed(self) -> None:
        row = schedule(interval=interval(1, "microseconds"))
        planning.plan_changed()
        set_plan(row, clock.now() - timedelta(minutes=1), anchor_at=clock.now())
        assert firing.fire_due(LONG_AGO).plans == 1
        next_due = plan_of(row).next_due_at
        assert next_due is not None
        assert clock.now() - timedelta(seconds=1) < next_due < clock.now() + timedelta(seconds=1)


class TestTheNextInstant:
    def test_it_is_the_first_after_the_edit(self) -> None:
        assert next_of() == at(13)

    def test_it_is_after_what_has_fired_already(self) -> None:
        assert next_of(last_due_at=at(15)) == at(16)

    def test_a_disabled_schedule_has_none(self) -> None:
        assert next_of(enabled=False) is None

    def test_a_paused_schedule_has_none(self) -> None:
        assert next_of(paused_at=at(11)) is None

    def test_a_pause_with_an_end_is_planned_after_it(self) -> None:
        assert next_of(paused_at=at(11), paused_until=at(14, 30)) == at(15)

    def test_a_pause_that_is_over_changes_nothing(self) -> None:
        assert next_of(paused_at=at(8), paused_until=at(9)) == at(13)

    def test_an_occurrence_at_the_end_of_a_pause_is_not_paused_any_more(self) -> None:
        assert next_of(paused_at=at(11), paused_until=at(14)) == at(14)

    def test_a_start_time_in_the_past_does_not_fire_at_once(self) -> None:
        assert next_of(HOURLY._replace(start_time=at(9, 30))) == at(13)

    def test_a_start_time_is_no_occurrence_of_a_crontab(self) -> None:
        assert next_of(HOURLY._replace(start_time=at(15, 30))) == at(16)

    def test_an_occurrence_at_the_start_time_counts(self) -> None:
        assert next_of(HOURLY._replace(start_time=at(15))) == at(15)

    def test_after_its_expiry_a_schedule_has_none(self) -> None:
        assert next_of(HOURLY._replace(expires=at(12, 59))) is None
        assert next_of(HOURLY._replace(expires=at(13))) == at(13)


class TestIntervals:
    def test_it_counts_from_the_edit_that_made_it(self) -> None:
        planned = plan(changed(EVERY_WEEK))
        assert planned.anchor_at == NOON
        assert planned.next_due_at == NOON + timedelta(days=7)

    def test_an_anchor_survives_whatever_leaves_the_rule_alone(self) -> None:
        anchor = NOON - timedelta(days=3)
        rule = EVERY_WEEK.serialised()
        assert next_of(EVERY_WEEK, anchor_at=anchor, rule=rule) == NOON + timedelta(days=4)

    def test_another_interval_counts_from_its_own_edit(self) -> None:
        anchor = NOON - timedelta(days=3)
        assert next_of(EVERY_WEEK, anchor_at=anchor, rule="other") == NOON + timedelta(days=7)

    def test_a_start_time_is_where_it_counts_from_and_its_first_instant(self) -> None:
        assert next_of(EVERY_WEEK._replace(start_time=at(15))) == at(15)
        assert next_of(EVERY_WEEK._replace(start_time=at(9))) == at(9, day=27)

    def test_a_new_expiry_leaves_the_anchor_alone(self) -> None:
        anchor = NOON - timedelta(days=3)
        fields = EVERY_WEEK._replace(expires=at(12, day=30))
        planned = plan(changed(fields, anchor_at=anchor, rule=EVERY_WEEK.serialised()))
        assert planned.next_due_at == NOON + timedelta(days=4)


class TestClocked:
    def test_a_time_in_the_past_stands_when_it_was_set_just_now(self) -> None:
        assert next_of(CLOCKED) == at(9)

    def test_it_does_not_stand_again_once_it_has_fired(self) -> None:
        assert next_of(CLOCKED, last_due_at=at(9), rule=CLOCKED.serialised()) is None
        assert next_of(CLOCKED, last_due_at=at(9)) is None

    def test_enabling_it_after_its_time_does_not_fire_it(self) -> None:
        assert next_of(CLOCKED, rule=CLOCKED.serialised()) is None

    def test_a_new_earlier_time_stands(self) -> None:
        assert next_of(CLOCKED, last_due_at=at(10), rule="other") == at(9)


class TestQuarantine:
    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"args": "[1,"}, "args are not JSON"),
            ({"args": '{"a": 1}'}, "args must be a JSON array"),
            ({"kwargs": "[]"}, "kwargs must be a JSON object"),
            ({"args": '[{"__type__": "decimal", "__value__": "x"}]'}, "args"),
            ({"args": "[" * 200_000}, "args"),
        ],
    )
    def test_arguments_that_cannot_be_read_stop_it(
        self, columns: dict[str, str], message: str
    ) -> None:
        planned = plan(changed(HOURLY, **columns))
        assert planned.next_due_at is None
        assert message in planned.error

    @pytest.mark.parametrize(
        "fields",
        [
            RuleFields(),
            HOURLY._replace(day_of_month="30", month_of_year="2"),
            HOURLY._replace(minute="61"),
            HOURLY._replace(timezone="Mars/Olympus"),
            RuleFields(every=0, period="days"),
            RuleFields(every=1, period="fortnights"),
            RuleFields(event="tea_time", latitude=52, longitude=13),
        ],
    )
    def test_a_rule_that_cannot_be_evaluated_stops_it(self, fields: RuleFields) -> None:
        planned = plan(changed(fields))
        assert planned.next_due_at is None
        assert planned.error

    def test_a_disabled_schedule_with_bad_arguments_is_no_trouble(self) -> None:
        assert next_of(args="[1,", enabled=False) is None


@pytest.mark.django_db
class TestABatch:
    def test_one_bad_schedule_does_not_stop_the_others(self) -> None:
        rows = [schedule(f"s{n}") for n in range(5)]
        PeriodicTask.objects.filter(pk=rows[2].pk).update(args="[1,")
        CrontabSchedule.objects.filter(pk=rows[3].crontab_id).update(minute="nonsense")
        assert planning.plan_changed() >= 5
        plans = [plan_of(row) for row in rows]
        assert [bool(plan.error) for plan in plans] == [False, False, True, True, False]
        assert [plan.next_due_at is None for plan in plans] == [False, False, True, True, False]
        assert not any(plan.needs_plan for plan in plans)

    def test_it_says_which_rule_and_which_engine_made_the_plan(self) -> None:
        row = schedule(crontab=crontab("5", "*/2"))
        planning.plan_changed()
        made = plan_of(row)
        assert made.rule.startswith("5|*/2|*|*|*|")
        assert made.rule_version == f"{recurrence.VERSION}/{recurrence.tzdata_version()}"

    def test_it_takes_at_most_a_batch(self) -> None:
        Plan.objects.all().delete()
        rule = crontab()
        PeriodicTask.objects.bulk_create(
            [PeriodicTask(name=f"b{n}", task="x", crontab=rule) for n in range(7)]
        )
        assert [planning.plan_changed(limit=5) for _ in range(3)] == [5, 2, 0]

    def test_what_was_due_before_the_edit_is_left_for_fire(self) -> None:
        row = schedule()
        due = clock.now() - timedelta(minutes=5)
        set_plan(row, due, needs_plan=True, plan_from=clock.now())
        planning.plan_changed()
        after = plan_of(row)
        assert (after.needs_plan, after.next_due_at) == (True, due)

    def test_empty_arguments_are_none_at_all(self) -> None:
        row = schedule(args="", kwargs="")
        planning.plan_changed()
        assert plan_of(row).error == ""

    def test_a_restart_does_not_move_an_interval(self) -> None:
        row = schedule(interval=interval(7, "days"))
        planning.plan_changed()
        first = plan_of(row)
        PeriodicTask.objects.filter(pk=row.pk).update(enabled=False)
        planning.plan_changed()
        PeriodicTask.objects.filter(pk=row.pk).update(enabled=True)
        planning.plan_changed()
        again = plan_of(row)
        assert (again.anchor_at, again.next_due_at) == (first.anchor_at, first.next_due_at)


@pytest.mark.django_db(transaction=True)
def test_two_planners_share_the_work_and_wait_for_nobody() -> None:
    rows = [schedule(f"s{n}") for n in range(3)]
    with second_connection() as other:
        other.execute(
            "SELECT 1 FROM scheduling_plan WHERE schedule_id = %s FOR NO KEY UPDATE", [rows[0].pk]
        )
        in_thread(planning.plan_changed).result(5)
        assert [plan_of(row).needs_plan for row in rows] == [True, False, False]


@given(st.integers(1, 2**31 - 1), st.timedeltas(timedelta(microseconds=1), timedelta(days=30)))
def test_a_spread_is_fixed_for_a_schedule_and_below_its_limit(key: int, limit: timedelta) -> None:
    offset = spread_offset(key, limit)
    assert timedelta(0) <= offset <= limit
    assert offset == spread_offset(key, limit)


def test_a_spread_spreads() -> None:
    offsets = [spread_offset(key, timedelta(minutes=1)) for key in range(1, 601)]
    by_second = [sum(offset.seconds // 10 == part for offset in offsets) for part in range(6)]
    assert min(by_second) > 60
