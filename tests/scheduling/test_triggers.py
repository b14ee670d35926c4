"""Each change of when a schedule fires asks for a new plan, by any writer and in any way."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    PeriodicTask,
    SolarSchedule,
)

from scheduling import clock, schedules
from scheduling.beat import firing
from scheduling.models import Plan, Policy, State
from scheduling.schedules import planning
from tests.scheduling.ledger import (
    LONG_AGO,
    crontab,
    in_thread,
    interval,
    is_blocked,
    plan_of,
    run,
    runs_of,
    schedule,
    second_connection,
    set_plan,
)
from tests.waiting import wait_for

TOMORROW = datetime(2099, 1, 1, tzinfo=UTC)


def sql(statement: str, *parameters: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)


def planned(**columns: Any) -> PeriodicTask:
    row = schedule(**columns)
    set_plan(row, TOMORROW)
    return row


def asked(row: PeriodicTask) -> bool:
    """Return whether a new plan is asked for; in any case the next instant must stand."""
    plan = plan_of(row)
    assert plan.next_due_at == TOMORROW
    assert plan.needs_plan == (plan.plan_from != LONG_AGO)
    return plan.needs_plan


@pytest.mark.django_db
class TestNewSchedules:
    def test_a_saved_one_gets_a_plan(self) -> None:
        before = clock.now()
        plan = plan_of(schedule())
        assert plan.needs_plan
        assert plan.next_due_at is None
        assert before <= plan.plan_from <= clock.now()

    def test_bulk_created_ones_get_plans(self) -> None:
        rule = crontab()
        PeriodicTask.objects.bulk_create(
            [PeriodicTask(name=f"bulk {n}", task="x", crontab=rule) for n in range(50)]
        )
        assert Plan.objects.filter(schedule__name__startswith="bulk", needs_plan=True).count() == 50

    def test_one_that_raw_sql_inserts_gets_a_plan(self) -> None:
        source = schedule()
        sql(
            "INSERT INTO django_celery_beat_periodictask (name, task, args, kwargs, headers,"
            " one_off, enabled, total_run_count, date_changed, description, crontab_id)"
            " SELECT 'raw', task, args, kwargs, headers, one_off, enabled, 0, now(), '', crontab_id"
            " FROM django_celery_beat_periodictask WHERE id = %s", source.pk,
        )  # fmt: skip
        assert Plan.objects.get(schedule__name="raw").needs_plan


@pytest.mark.django_db
class TestEditsOfASchedule:
    @pytest.mark.parametrize(
        "columns",
        [
            {"enabled": False},
            {"one_off": True},
            {"start_time": TOMORROW},
            {"expires": TOMORROW},
            {"crontab": None},
        ],
    )
    def test_what_changes_when_it_fires_asks_for_a_plan(self, columns: dict[str, Any]) -> None:
        row = planned()
        PeriodicTask.objects.filter(pk=row.pk).update(**columns)
        assert asked(row)

    def test_a_save_by_the_orm_counts_like_an_update(self) -> None:
        row = planned()
        row.interval, row.crontab = interval(5), None
        row.save()
        assert asked(row)

    def test_raw_sql_counts_like_an_update(self) -> None:
        row = planned()
        sql("UPDATE django_celery_beat_periodictask SET enabled = false WHERE id = %s", row.pk)
        assert asked(row)

    def test_a_save_that_changes_nothing_asks_for_nothing(self) -> None:
        row = planned()
        PeriodicTask.objects.get(pk=row.pk).save()
        assert not asked(row)

    @pytest.mark.parametrize(
        "columns",
        [
            {"last_run_at": TOMORROW, "total_run_count": 7},
            {"description": "other"},
        ],
    )
    def test_what_leaves_the_instants_alone_asks_for_nothing(self, columns: dict[str, Any]) -> None:
        row = planned()
        PeriodicTask.objects.filter(pk=row.pk).update(**columns)
        assert not asked(row)

    def test_only_the_edited_ones_of_a_bulk_update_are_asked_for(self) -> None:
        touched, same = planned(name="a"), planned(name="b", enabled=False)
        PeriodicTask.objects.filter(pk__in=(touched.pk, same.pk)).update(enabled=False)
        assert (asked(touched), asked(same)) == (True, False)

    def test_an_edit_of_the_call_moves_no_instant(self) -> None:
        row = schedule()
        planning.plan_changed()
        before = plan_of(row).next_due_at
        PeriodicTask.objects.filter(pk=row.pk).update(args="[3, 4]", priority=0)
        planning.plan_changed()
        after = plan_of(row).next_due_at
        assert after is not None
        assert before is not None
        assert before <= after <= before + timedelta(minutes=1)

    @pytest.mark.parametrize(
        "columns", [{"args": "[1]"}, {"kwargs": "{}"}, {"task": "other"}, {"queue": "other"}]
    )
    def test_any_repair_lifts_a_quarantine(self, columns: dict[str, Any]) -> None:
        row = planned(args="[1,", kwargs="{")
        Plan.objects.filter(schedule=row).update(error="args are not JSON")
        PeriodicTask.objects.filter(pk=row.pk).update(**columns)
        assert asked(row)


@pytest.mark.django_db
class TestEditsOfARule:
    def test_a_shared_crontab_reaches_all_its_schedules_and_no_other(self) -> None:
        rule = crontab("0", "6")
        rows = [planned(name=f"s{n}", crontab=rule) for n in range(20)]
        other = planned(name="other")
        CrontabSchedule.objects.filter(pk=rule.pk).update(hour="7")
        assert all(asked(row) for row in rows)
        assert not asked(other)

    @pytest.mark.parametrize(
        "columns",
        [
            {"minute": "1"},
            {"hour": "1"},
            {"day_of_month": "1"},
            {"month_of_year": "1"},
            {"day_of_week": "1"},
            {"timezone": "Europe/Berlin"},
        ],
    )
    def test_every_field_of_a_crontab_counts(self, columns: dict[str, str]) -> None:
        row = planned(crontab=crontab())
        CrontabSchedule.objects.filter(pk=row.crontab_id).update(**columns)
        assert asked(row)

    def test_saving_a_crontab_unchanged_asks_for_nothing(self) -> None:
        row = planned()
        row.crontab.save()
        assert not asked(row)

    def test_an_interval_counts(self) -> None:
        row = planned(interval=interval(5))
        row.interval.every = 6
        row.interval.save()
        assert asked(row)

    def test_a_clocked_time_counts(self) -> None:
        rule = ClockedSchedule.objects.create(clocked_time=TOMORROW)
        row = planned(clocked=rule, one_off=True)
        sql("UPDATE django_celery_beat_clockedschedule SET clocked_time = now()")
        assert asked(row)

    def test_a_place_under_the_sun_counts(self) -> None:
        rule = SolarSchedule.objects.create(event="sunset", latitude=52, longitude=13)
        row = planned(solar=rule)
        SolarSchedule.objects.filter(pk=rule.pk).update(longitude=14)
        assert asked(row)


@pytest.mark.django_db
class TestPauses:
    def test_pausing_and_resuming_ask_for_plans(self) -> None:
        row = planned()
        schedules.pause(row, by="ann")
        assert asked(row)
        set_plan(row, TOMORROW)
        schedules.resume(row, by="ann")
        assert asked(row)

    def test_a_pause_counts_from_its_own_instant(self) -> None:
        row, now = planned(policy={}), clock.now()
        policy, ago = Policy.objects.filter(schedule=row), now - timedelta(seconds=5)
        policy.update(paused_at=ago)
        assert plan_of(row).plan_from == ago
        policy.update(paused_until=now + timedelta(hours=1))
        assert plan_of(row).plan_from >= now
        policy.update(paused_at=None, paused_until=None)
        policy.update(paused_at=ago, paused_until=ago)
        assert plan_of(row).plan_from >= now, "that one is over"

    def test_a_policy_that_is_made_paused_asks_for_a_plan(self) -> None:
        row = planned()
        Policy.objects.create(schedule=row, paused_at=TOMORROW)
        assert asked(row)

    def test_deleting_the_policy_of_a_paused_schedule_resumes_it(self) -> None:
        row = planned(policy={"paused_at": TOMORROW})
        Policy.objects.filter(schedule=row).delete()
        assert asked(row)

    def test_other_policies_ask_for_nothing(self) -> None:
        row = planned(policy={})
        Policy.objects.filter(schedule=row).update(overlap="skip", spread=timedelta(minutes=5))
        assert not asked(row)


@pytest.mark.django_db(transaction=True)
class TestDeletes:
    @pytest.mark.parametrize("paused_at", [None, TOMORROW])
    @pytest.mark.parametrize(
        "delete",
        [
            lambda row: row.delete(),
            lambda row: PeriodicTask.objects.filter(pk=row.pk).delete(),
            lambda row: sql("DELETE FROM django_celery_beat_periodictask WHERE id = %s", row.pk),
        ],
    )
    def test_plan_and_policy_go_with_a_schedule_and_its_runs_stay(
        self, delete: Callable[[PeriodicTask], object], paused_at: datetime | None
    ) -> None:
        row = schedule(policy={"paused_at": paused_at})
        made = run(State.SUCCEEDED, schedule_id=row.pk, schedule_name=row.name)
        key = row.pk
        delete(row)
        assert not Plan.objects.filter(pk=key).exists()
        assert not Policy.objects.filter(pk=key).exists()
        made.refresh_from_db()
        assert made.schedule_id == key

    def test_the_schedules_of_a_deleted_crontab_go_with_their_plans(self) -> None:
        row = schedule()
        row.crontab.delete()
        assert not Plan.objects.filter(pk=row.pk).exists()


@pytest.mark.django_db(transaction=True)
class TestLongEdits:
    """An edit that is not committed holds its plan: due work is delayed then, and never lost."""

    def test_other_schedules_fire_while_an_edit_is_open(self) -> None:
        edited, other = schedule(name="edited"), schedule(name="other")
        for row in (edited, other):
            set_plan(row, clock.now() - timedelta(seconds=10))
        with second_connection() as editor:
            editor.execute(
                "UPDATE django_celery_beat_periodictask SET enabled = false WHERE id = %s",
                [edited.pk],
            )
            firing.fire_due(LONG_AGO)
            assert (len(runs_of(edited)), len(runs_of(other))) == (0, 1)
            editor.commit()
        firing.fire_due(LONG_AGO)
        assert len(runs_of(edited)) == 1, "it was due before the edit"

    def test_an_edit_counts_from_when_it_was_made_however_late_it_is_committed(self) -> None:
        row = schedule(crontab=crontab("0", "0"))
        planning.plan_changed()
        set_plan(row, TOMORROW)
        with second_connection() as editor:
            editor.execute(
                "UPDATE django_celery_beat_crontabschedule SET minute = '*', hour = '*'"
                " WHERE id = %s", [row.crontab_id],
            )  # fmt: skip
            made = clock.now()
            assert planning.plan_changed() == 0
            assert wait_for(lambda: clock.now() > made + timedelta(milliseconds=50))
            editor.commit()
        assert planning.plan_changed() == 1
        plan = plan_of(row)
        assert plan.plan_from < made
        assert plan.next_due_at is not None
        assert plan.next_due_at - plan.plan_from <= timedelta(minutes=1)

    def test_an_edit_waits_for_beat_and_not_beat_for_an_edit(self) -> None:
        row = schedule()
        with transaction.atomic():
            planning.plan_changed()
            edit = in_thread(
                lambda: PeriodicTask.objects.filter(pk=row.pk).update(expires=TOMORROW)
            )
            wait_for(is_blocked)
        assert edit.result(5) == 1
        assert plan_of(row).needs_plan

    def test_an_edit_of_the_call_waits_for_the_batch_that_fires_it(self) -> None:
        row = schedule()
        set_plan(row, clock.now() - timedelta(seconds=1))
        with transaction.atomic():
            firing.fire_due(LONG_AGO)
            edited = PeriodicTask.objects.filter(pk=row.pk)
            edit = in_thread(lambda: edited.update(task="other", queue="other"))
            wait_for(is_blocked)
        assert edit.result(5) == 1
        (made,) = runs_of(row)
        assert (made.task, made.queue) == (row.task, "celery")

    def test_a_repair_made_while_the_quarantine_is_being_written_is_noticed(self) -> None:
        row = schedule(args="[1,")
        with transaction.atomic():
            planning.plan_changed()
            repair = in_thread(lambda: PeriodicTask.objects.filter(pk=row.pk).update(args="[1, 2]"))
            wait_for(lambda: repair.done() or is_blocked())
        assert repair.result(5) == 1
        planning.plan_changed()
        assert plan_of(row).error == ""

    def test_a_crontab_edited_while_a_schedule_is_attached_to_it_reaches_that_schedule(
        self,
    ) -> None:
        rule = crontab("0", "6")
        with second_connection() as editor:
            editor.execute(
                "UPDATE django_celery_beat_crontabschedule SET hour = '7' WHERE id = %s", [rule.pk]
            )
            attaching = in_thread(lambda: schedule(crontab=rule))
            wait_for(lambda: attaching.done() or is_blocked())
            planning.plan_changed()
            editor.commit()
        row = attaching.result(5)
        planning.plan_changed()
        due = plan_of(row).next_due_at
        assert due is not None
        assert due.hour == 7


@pytest.mark.django_db(transaction=True)
def test_pauses_of_many_schedules_at_once_lock_their_plans_in_one_order() -> None:
    rows = [planned(name=f"s{n}", policy={}) for n in range(40)]
    ids = [row.pk for row in rows]

    def pause(half: list[int]) -> int:
        return sum(
            Policy.objects.filter(pk__in=half).update(paused_at=moment)
            for moment in [clock.now(), None] * 10
        )

    def edit(chosen: list[int]) -> int:
        return sum(
            PeriodicTask.objects.filter(pk__in=chosen).update(start_time=moment)
            for moment in [LONG_AGO, None] * 10
        )

    at_work = [
        in_thread(lambda: pause(ids[:20])),
        in_thread(lambda: pause(ids[20:])),
        in_thread(lambda: edit(ids[::-1])),
    ]
    assert [one.result(30) for one in at_work] == [400, 400, 800]
    assert all(asked(row) for row in rows)
