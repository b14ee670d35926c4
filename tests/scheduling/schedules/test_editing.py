"""The changes of an edit: the same words before it is made and after."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

from scheduling import schedules
from scheduling.errors import EnqueueError, ScheduleError
from scheduling.models import Calendar, ManagedBy, Plan, Policy, Schedule
from scheduling.schedules import Cron, Every, Once, editing, planning
from tests.scheduling.ledger import (
    crontab,
    in_thread,
    interval,
    is_blocked,
    schedule,
    second_connection,
    set_plan,
)
from tests.waiting import wait_for

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)

pytestmark = pytest.mark.django_db


def daily(**columns: Any) -> Schedule:
    row = schedule(crontab=crontab("0", "6"), **columns)
    set_plan(row, NOON + timedelta(hours=18))
    return schedules.named(row.name)


def edit(row: PeriodicTask, *args: Any, **options: Any) -> editing.Edit:
    return editing.edit(row, *args, by="ann", now=NOON, **options)


def preview(row: PeriodicTask, *args: Any, **options: Any) -> editing.Edit:
    return editing.preview(row, *args, now=NOON, **options)


def fresh(row: PeriodicTask) -> Schedule:
    return schedules.named(row.name)


class TestTheRule:
    def test_another_one_takes_its_place_and_a_shared_row_stays(self) -> None:
        row = daily()
        other = PeriodicTask.objects.create(name="other", task="t", crontab=row.crontab)
        made = edit(row, Cron("0 7 * * *", "UTC"))
        assert made.rule == ("0 6 * * * UTC", "0 7 * * * UTC")
        assert made.occurrences is not None
        assert (made.occurrences.added, made.occurrences.removed) == (30, 30)
        assert fresh(row).crontab.hour == "7"
        other.refresh_from_db()
        assert other.crontab.hour == "6"
        assert Plan.objects.get(schedule=row).needs_plan

    def test_one_kind_takes_the_place_of_another(self) -> None:
        row = daily()
        edit(row, Every(timedelta(hours=1)))
        edited = fresh(row)
        assert (edited.crontab, edited.interval.period) == (None, "hours")
        edit(edited, Once(NOON + timedelta(days=1)))
        once = fresh(row)
        assert (once.interval, once.one_off) == (None, True)
        edit(once, Cron("0 7 * * *", "UTC"))
        assert (fresh(row).clocked, fresh(row).one_off) == (None, False)

    def test_a_new_interval_counts_from_now_and_the_same_one_from_its_anchor(self) -> None:
        row = schedule(interval=interval(60))
        set_plan(row, NOON + timedelta(minutes=30), anchor_at=NOON - timedelta(minutes=30))
        found = preview(fresh(row), Every(timedelta(hours=2))).occurrences
        assert found is not None
        assert found.moved == (NOON + timedelta(minutes=30), NOON + timedelta(hours=2))
        assert not preview(fresh(row), Every(timedelta(hours=1)))

    def test_a_one_off_that_has_fired_is_armed_again(self) -> None:
        row = schedule(crontab=crontab("0", "6"), one_off=True, enabled=False)
        set_plan(row, None, done=True)
        made = edit(fresh(row), Once(NOON + timedelta(days=1)))
        assert made.columns["enabled"] == (False, True)
        assert made.occurrences is not None
        assert made.occurrences.moved == (None, NOON + timedelta(days=1))
        planning.plan_changed()
        assert Plan.objects.get(schedule=row).next_due_at == NOON + timedelta(days=1)

    def test_a_disabled_one_has_no_occurrences_to_move(self) -> None:
        found = preview(daily(enabled=False), Cron("0 7 * * *", "UTC"))
        assert found.occurrences is not None
        assert found.occurrences.moved is None

    def test_a_rule_that_could_not_be_read_is_only_replaced(self) -> None:
        row = schedule(crontab=crontab("61"))
        found = edit(fresh(row), Cron("0 7 * * *", "UTC")).occurrences
        assert found is not None
        assert (found.added, found.removed) == (30, 0)

    def test_an_interval_that_nothing_can_hold_is_only_replaced(self) -> None:
        (huge,) = IntervalSchedule.objects.bulk_create(
            [IntervalSchedule(every=2**31 - 1, period="days")]
        )
        found = edit(fresh(schedule(interval=huge)), Every(timedelta(days=1))).occurrences
        assert found is not None
        assert (found.added, found.removed) == (30, 0)

    def test_a_start_moves_the_first_one(self) -> None:
        start = datetime(2026, 12, 1, tzinfo=UTC)
        found = edit(daily(), columns={"start_time": start}).occurrences
        assert found is not None
        assert (found.added, found.removed, found.kept) == (0, 10, 20)


class TestItsDaysOff:
    def test_a_calendar_takes_its_days_out(self) -> None:
        weekends = Calendar.objects.create(name="weekends", weekdays=[5, 6])
        row = daily()
        found = preview(row, policy={"calendar": "weekends"}).occurrences
        assert found is not None
        assert (found.added, found.removed, found.kept) == (0, 10, 20)
        edit(row, policy={"calendar": "weekends"})
        treated = fresh(row)
        assert treated.policy.calendar == weekends
        back = preview(treated, policy={"calendar": None}).occurrences
        assert back is not None
        assert (back.added, back.removed) == (10, 0)

    def test_a_calendar_does_not_make_an_interval_count_anew(self) -> None:
        Calendar.objects.create(name="weekends", weekdays=[5, 6])
        row = schedule(interval=interval(60))
        set_plan(row, NOON + timedelta(minutes=30), anchor_at=NOON - timedelta(minutes=30))
        found = preview(fresh(row), policy={"calendar": "weekends"}).occurrences
        assert found is not None
        assert (found.added, found.removed) == (0, 9 * 24 + 12)  # the last Sunday until noon

    def test_one_of_a_country_that_nobody_knows_can_be_taken_back(self) -> None:
        unknown = Calendar.objects.create(name="unknown", country="XX")
        row = daily(policy={"calendar": unknown})
        found = edit(row, policy={"calendar": None}).occurrences
        assert found is not None
        assert (found.added, found.removed) == (30, 0)

    def test_one_that_leaves_nothing_is_refused(self) -> None:
        Calendar.objects.create(name="sundays", weekdays=[6])
        row = schedule(crontab=crontab("0", "6", day_of_week="0"))
        with pytest.raises(ScheduleError, match="does not fire"):
            edit(fresh(row), policy={"calendar": "sundays"})


class TestTheRest:
    def test_what_is_called_and_how_it_is_treated_are_changed_at_once(self) -> None:
        row = daily()
        made = edit(
            row,
            columns={"args": "[3, 4]", "queue": "mails", "priority": 0},
            policy={"overlap": "skip", "spread": timedelta(minutes=5)},
        )
        assert made.columns == {
            "args": ("[1, 2]", "[3, 4]"), "queue": (None, "mails"), "priority": (None, 0)
        }  # fmt: skip
        assert made.policy == {
            "overlap": ("allow", "skip"), "spread": (timedelta(0), timedelta(minutes=5))
        }  # fmt: skip
        assert made.occurrences is None
        edited = fresh(row)
        assert (edited.args, edited.queue, edited.priority) == ("[3, 4]", "mails", 0)
        assert (edited.policy.overlap, edited.policy.spread) == ("skip", timedelta(minutes=5))
        assert not edit(edited, columns={"queue": "mails"}, policy={"overlap": "skip"})

    def test_a_pause_that_stands_stays(self) -> None:
        row = daily(policy={"overlap": "skip"})
        schedules.pause(row, by="ben", reason="freeze")
        edit(row, policy={"overlap": "queue"})
        assert Policy.objects.get(schedule=row).pause_reason == "freeze"

    def test_no_policy_is_written_where_none_is_asked_for(self) -> None:
        edit(daily(), columns={"description": "why"})
        assert not Policy.objects.exclude(managed_by=ManagedBy.CODE).exists()

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"rule": Cron("0 0 31 2 *", "UTC")}, ScheduleError, "does not fire"),
            ({"rule": Once(NOON)}, ScheduleError, "is in the past"),
            ({"columns": {"args": "[1]"}}, EnqueueError, "do not fit"),
            ({"columns": {"headers": "{}"}}, ScheduleError, "'headers' cannot be changed here"),
            ({"columns": {"queue": "q" * 201}}, ScheduleError, "queue: .*at most 200"),
            ({"policy": {"paused_by": "me"}}, ScheduleError, "'paused_by' is not a policy"),
            ({"policy": {"max_attempts": 0}}, ScheduleError, "greater than or equal to 1"),
        ],
    )
    def test_what_cannot_be_is_refused_and_changes_nothing(
        self, options: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        row, rules = daily(), CrontabSchedule.objects.count()
        for act in (edit, preview):
            with pytest.raises(error, match=message):
                act(row, **options)
        assert CrontabSchedule.objects.count() == rules
        assert fresh(row).crontab.hour == "6"

    def test_what_belongs_to_code_is_left_to_code(self) -> None:
        row = daily(policy={"managed_by": ManagedBy.CODE})
        with pytest.raises(ScheduleError, match="managed by code"):
            edit(row, policy={"overlap": "skip"})

    def test_one_that_was_removed_meanwhile_is_said(self) -> None:
        row = daily()
        PeriodicTask.objects.filter(pk=row.pk).delete()
        with pytest.raises(ScheduleError, match="removed meanwhile"):
            edit(row, policy={"overlap": "skip"})


def test_an_edit_starts_from_what_the_one_before_it_has_left() -> None:
    row = daily()
    read_before = fresh(row)
    edit(row, Cron("0 7 * * *", "UTC"))
    back = edit(read_before, Cron("0 6 * * *", "UTC"))
    assert back.rule == ("0 7 * * * UTC", "0 6 * * * UTC")
    assert fresh(row).crontab.hour == "6"


@pytest.mark.django_db(transaction=True)
def test_two_edits_at_once_come_one_after_the_other() -> None:
    row = daily()
    both = [
        in_thread(lambda: edit(row, Cron("0 7 * * *", "UTC"))),
        in_thread(lambda: edit(row, policy={"overlap": "skip"})),
    ]
    assert wait_for(lambda: all(one.done() for one in both))
    for one in both:
        one.result(5)
    assert (fresh(row).crontab.hour, fresh(row).policy.overlap) == ("7", "skip")


@pytest.mark.django_db(transaction=True)
def test_an_edit_and_a_pause_at_once_do_not_wait_for_each_other_for_ever() -> None:
    row = daily(policy={"owner": "ann"})
    with second_connection() as pausing:
        pausing.execute(
            "UPDATE scheduling_policy SET owner = 'ben' WHERE schedule_id = %s", [row.pk]
        )
        editing_it = in_thread(
            lambda: edit(row, Cron("0 7 * * *", "UTC"), policy={"overlap": "skip"})
        )
        assert wait_for(is_blocked)
        pausing.execute(
            "UPDATE scheduling_policy SET paused_at = now() WHERE schedule_id = %s", [row.pk]
        )
        pausing.commit()
    assert editing_it.result(5)
    policy = fresh(row).policy
    assert (policy.owner, policy.overlap, policy.paused_at is None) == ("ben", "skip", False)
