"""Calendars in the ledger: their edits are noticed, and planning and firing follow them."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django_celery_beat.models import ClockedSchedule, PeriodicTask

from scheduling import clock, recurrence, schedules
from scheduling.beat import firing
from scheduling.beat.deciding import Due, Unfinished, decide
from scheduling.errors import CalendarError
from scheduling.history import backfilling
from scheduling.models import Calendar, ExcludedDate, Plan, Policy, Run, State
from scheduling.schedules import calendars, editing, planning, upgrade_check
from scheduling.schedules.planning import Changed, plan
from scheduling.schedules.rules import RuleFields
from tests.scheduling.ledger import (
    LONG_AGO,
    NOON,
    YEAR,
    crontab,
    far_off,
    in_thread,
    interval,
    is_blocked,
    plan_of,
    run,
    runs_of,
    schedule,
    second_connection,
    sessions_blocked,
    set_plan,
)
from tests.waiting import wait_for

DAY = timedelta(days=1)
NEXT_YEAR = datetime(2099, 1, 1, tzinfo=UTC)  # a Thursday
WEEKEND = recurrence.days_off("weekend", weekdays=[5, 6])
# NOON is a Friday's.
SATURDAY = datetime(2026, 11, 21, tzinfo=UTC)
MONDAY = datetime(2026, 11, 23, tzinfo=UTC)


def calendar(name: str = "DE", **columns: Any) -> Calendar:
    row: Calendar = Calendar.objects.create(name=name, **{"weekdays": [5, 6], **columns})
    return row


def following(excluded_day: str = "skip", **columns: Any) -> PeriodicTask:
    """Return a schedule with a calendar, its plan made."""
    row = schedule(
        policy={"calendar": calendar(), "excluded_day": excluded_day},
        **{"crontab": crontab("0", "9"), **columns},
    )
    set_plan(row, NEXT_YEAR)
    return row


def calendar_of(row: PeriodicTask) -> Calendar:
    found = Policy.objects.get(schedule=row).calendar
    assert found is not None
    return found


def sql(statement: str, *parameters: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)


def asked(row: PeriodicTask) -> bool:
    found = plan_of(row)
    assert found.next_due_at == NEXT_YEAR
    return found.needs_plan


@pytest.mark.django_db
class TestEdits:
    @pytest.mark.parametrize(
        "edit",
        [
            lambda row: Calendar.objects.update(weekdays=[6]),
            lambda row: Calendar.objects.update(country="DE"),
            lambda row: Calendar.objects.filter(country="").update(subdivision="BY"),
            lambda row: calendar_of(row).dates.create(date="2026-12-24"),
            lambda row: ExcludedDate.objects.bulk_create(
                [ExcludedDate(calendar=calendar_of(row), date=date(2026, 1, n)) for n in (2, 3)]
            ),
            lambda row: sql("UPDATE scheduling_calendar SET weekdays = '{0}'"),
            lambda row: Policy.objects.update(calendar=None),
            lambda row: Policy.objects.update(excluded_day="next"),
            lambda row: Policy.objects.all().delete(),
            lambda row: sql("DELETE FROM scheduling_policy"),
        ],
    )
    def test_what_changes_its_days_off_asks_for_a_plan(
        self, edit: Callable[[PeriodicTask], object]
    ) -> None:
        row = following()
        edit(row)
        assert asked(row)

    @pytest.mark.parametrize(
        "edit",
        [
            lambda: ExcludedDate.objects.update(date="2026-12-23"),
            lambda: ExcludedDate.objects.all().delete(),
            lambda: sql("DELETE FROM scheduling_excludeddate"),
        ],
    )
    def test_an_edit_of_its_dates_asks_for_a_plan(self, edit: Callable[[], object]) -> None:
        row = following()
        calendar_of(row).dates.create(date="2026-12-24")
        set_plan(row, NEXT_YEAR)
        edit()
        assert asked(row)

    def test_following_a_calendar_asks_for_a_plan(self) -> None:
        row = schedule()
        set_plan(row, NEXT_YEAR)
        Policy.objects.create(schedule=row, calendar=calendar())
        assert asked(row)

    @pytest.mark.parametrize(
        "edit",
        [
            lambda row: calendar_of(row).save(),
            lambda row: Calendar.objects.update(description="other"),
            lambda row: ExcludedDate.objects.update(date="2026-12-24", reason=""),
            lambda row: Policy.objects.update(overlap="skip"),
            lambda row: calendar("other").dates.create(date="2026-12-24"),
        ],
    )
    def test_what_leaves_them_alone_asks_for_nothing(
        self, edit: Callable[[PeriodicTask], object]
    ) -> None:
        row = following()
        calendar_of(row).dates.create(date="2026-12-24")
        set_plan(row, NEXT_YEAR)
        edit(row)
        assert not asked(row)

    def test_the_way_of_a_schedule_without_a_calendar_makes_no_difference(self) -> None:
        row = schedule(policy={})
        set_plan(row, NEXT_YEAR)
        Policy.objects.update(excluded_day="next")
        assert not asked(row)

    def test_an_edit_reaches_all_that_follow_it_and_no_other(self) -> None:
        shared, other = calendar("shared"), calendar("other")
        rows = [schedule(f"s{n}", policy={"calendar": shared}) for n in range(20)]
        apart = schedule("apart", policy={"calendar": other})
        for row in (*rows, apart):
            set_plan(row, NEXT_YEAR)
        shared.dates.create(date="2026-12-24")
        assert all(asked(row) for row in rows)
        assert not asked(apart)

    def test_the_policies_of_many_schedules_are_paused_in_one_statement(self) -> None:
        rows = [schedule(f"s{n}", policy={}) for n in range(20)]
        for row in rows:
            set_plan(row, NEXT_YEAR)
        Policy.objects.update(paused_at=NOON)
        assert all(asked(row) for row in rows)


@pytest.mark.django_db(transaction=True)
class TestLocks:
    def test_a_calendar_edited_while_a_schedule_begins_to_follow_it_reaches_that_schedule(
        self,
    ) -> None:
        row, days = schedule(crontab=crontab("0", "9")), calendar(weekdays=[6])
        planning.plan_changed()
        with second_connection() as editor:
            editor.execute(
                "INSERT INTO scheduling_excludeddate (calendar_id, date) VALUES (%s, '2098-12-24')",
                [days.pk],
            )
            attaching = in_thread(lambda: Policy.objects.create(schedule=row, calendar=days))
            wait_for(lambda: attaching.done() or is_blocked())
            planning.plan_changed()
            editor.commit()
        attaching.result(5)
        planning.plan_changed()
        found = calendars.days_off_by_id([days.pk])[days.pk]
        assert plan_of(row).rule.endswith(f"|calendar {found.fingerprint} skip")
        assert found.is_off(date(2098, 12, 24))

    def test_edits_of_a_calendar_and_of_who_follows_it_cannot_deadlock(self) -> None:
        row = following()
        with second_connection() as holder:
            holder.execute(
                "SELECT 1 FROM scheduling_plan WHERE schedule_id = %s FOR UPDATE", [row.pk]
            )
            one = in_thread(lambda: Policy.objects.filter(schedule=row).update(excluded_day="next"))
            wait_for(lambda: sessions_blocked() == 1)
            other = in_thread(lambda: Calendar.objects.update(weekdays=[0]))
            wait_for(lambda: sessions_blocked() == 2)
            holder.commit()
        assert (one.result(5), other.result(5)) == (1, 1)

    def test_edits_of_a_crontab_and_of_who_uses_it_cannot_deadlock(self) -> None:
        row = schedule()
        with second_connection() as holder:
            holder.execute(
                "SELECT 1 FROM scheduling_plan WHERE schedule_id = %s FOR UPDATE", [row.pk]
            )
            one = in_thread(lambda: PeriodicTask.objects.filter(pk=row.pk).update(enabled=False))
            wait_for(lambda: sessions_blocked() == 1)
            rule = type(row.crontab).objects.filter(pk=row.crontab_id)
            other = in_thread(lambda: rule.update(hour="5"))
            wait_for(lambda: sessions_blocked() == 2)
            holder.commit()
        assert (one.result(5), other.result(5)) == (1, 1)

    @pytest.mark.parametrize("held", ["crontab", "calendar"])
    def test_an_edit_of_a_schedule_waits_for_its_rule_and_calendar_before_it_has_its_plan(
        self, held: str
    ) -> None:
        row = following()
        days = Calendar.objects.get()
        table, column, pk = {
            "crontab": ("django_celery_beat_crontabschedule", "minute = '7'", row.crontab_id),
            "calendar": ("scheduling_calendar", "weekdays = '{0}'", days.pk),
        }[held]
        with second_connection() as other:
            other.execute(f"SELECT 1 FROM {table} WHERE id = %s FOR NO KEY UPDATE", [pk])  # noqa: S608
            edit = in_thread(
                lambda: editing.edit(
                    row,
                    columns={"start_time": datetime(YEAR, 1, 1, tzinfo=UTC)},
                    policy={"excluded_day": "next"},
                    by="ann",
                )
            )
            wait_for(lambda: edit.done() or sessions_blocked() == 1)
            other.execute(f"UPDATE {table} SET {column} WHERE id = %s", [pk])  # noqa: S608
            other.commit()
        assert edit.result(5)

    def test_a_calendar_in_use_cannot_be_deleted_by_sql_either(self) -> None:
        row = following()
        with pytest.raises(IntegrityError), transaction.atomic():
            sql("DELETE FROM scheduling_calendar")
        Policy.objects.filter(schedule=row).delete()
        calendar_row = Calendar.objects.get()
        calendar_row.dates.create(date="2026-12-24")
        sql("DELETE FROM scheduling_calendar")
        assert not ExcludedDate.objects.exists()

    def test_a_schedule_with_a_calendar_can_be_deleted_by_sql(self) -> None:
        row = following()
        sql("DELETE FROM django_celery_beat_periodictask WHERE id = %s", row.pk)
        assert not Policy.objects.filter(pk=row.pk).exists()


@pytest.mark.django_db
class TestReading:
    def test_what_is_read_is_what_is_written(self) -> None:
        row = calendar(country="DE", subdivision="BY")
        row.dates.create(date="2026-12-24", reason="closed")
        found = calendars.days_off_by_id([row.pk])[row.pk]
        assert found.explain(date(2026, 12, 24)) == "calendar 'DE': 2026-12-24 closed"
        assert found.why(date(2027, 1, 6)) == "Epiphany"  # in Bavaria
        row.refresh_from_db()
        assert calendars.days_off_of(row) is found

    def test_the_tables_are_read_again_only_for_what_has_changed(
        self, django_assert_num_queries: Any
    ) -> None:
        row = calendar()
        calendars.days_off_by_id([row.pk])
        with django_assert_num_queries(1):
            calendars.days_off_by_id([row.pk])
        row.dates.create(date="2026-12-24")
        with django_assert_num_queries(2):
            assert calendars.days_off_by_id([row.pk])[row.pk].is_off(date(2026, 12, 24))

    def test_a_rename_shows_in_the_reasons(self) -> None:
        row = calendar()
        calendars.days_off_by_id([row.pk])
        Calendar.objects.update(name="other")
        found = calendars.days_off_by_id([row.pk])[row.pk]
        assert found.explain(date(2026, 11, 21)) == "calendar 'other': 2026-11-21 Saturday"

    def test_memory_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(calendars, "KEPT", 3)
        rows = [calendar(f"c{n}") for n in range(9)]
        assert len(calendars.days_off_by_id([row.pk for row in rows])) == 9
        assert len(calendars._kept) <= 3

    def test_weekdays_in_an_array_of_arrays_are_those_of_one(self) -> None:
        row = calendar()
        with connection.cursor() as cursor:
            cursor.execute("UPDATE scheduling_calendar SET weekdays = '{{5,6},{0,1}}'")
        (days_off,) = calendars.days_off_by_id([row.pk]).values()
        assert days_off.weekdays == {0, 1, 5, 6}

    def test_dates_that_python_cannot_hold_are_left_where_they_are(self) -> None:
        row = calendar()
        sql(
            "INSERT INTO scheduling_excludeddate (calendar_id, date) VALUES"
            " (%s, 'infinity'), (%s, '0044-03-15 BC'), (%s, '12000-01-01')",
            row.pk, row.pk, row.pk,
        )  # fmt: skip
        assert calendars.days_off_by_id([row.pk])[row.pk].dates == {}


@pytest.mark.django_db
class TestChecks:
    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"weekdays": list(range(7))}, "All seven days of the week"),
            ({"weekdays": [7]}, "less than or equal to 6"),
            ({"country": "XX"}, "no public holidays are known for the country 'XX'"),
            ({"country": "DE", "subdivision": "XX"}, "DE has no subdivision 'XX'"),
            ({"subdivision": "BY"}, "A subdivision needs its country"),
        ],
    )
    def test_a_calendar_that_cannot_be_is_refused(
        self, columns: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValidationError, match=message):
            Calendar(name="x", **columns).full_clean()

    @pytest.mark.parametrize("weekdays", [[7], [0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0, 0]])
    def test_the_database_refuses_impossible_weekdays(self, weekdays: list[int]) -> None:
        with pytest.raises(IntegrityError):
            calendar(weekdays=weekdays)

    def test_one_made_is_one_read(self) -> None:
        calendars.add("DE", by="ann", weekdays=[6, 5, 6], country="de", subdivision="BY",
                      dates={date(2026, 12, 24): "closed"})  # fmt: skip
        made = calendars.named("DE")
        assert (made.weekdays, made.country, made.subdivision) == ([5, 6], "DE", "BY")
        assert [str(day) for day in made.dates.all()] == ["2026-12-24 closed"]

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({}, "has no day off"),
            ({"country": "DX"}, "country: no public holidays are known for the country 'DX'"),
            ({"weekdays": range(7)}, "All seven days"),
            ({"weekdays": [5], "dates": {date(2026, 1, 1): "x" * 201}}, "reason: "),
        ],
    )
    def test_what_cannot_be_is_not_made(self, columns: dict[str, Any], message: str) -> None:
        with pytest.raises(CalendarError, match=message):
            calendars.add("x", by="ann", **columns)
        assert not Calendar.objects.exists()

    def test_a_name_is_taken_once(self) -> None:
        calendars.add("DE", by="ann", weekdays=[6])
        with pytest.raises(CalendarError, match="there is a calendar 'DE' already"):
            calendars.add("DE", by="ann", weekdays=[6])

    def test_a_mistyped_name_is_refused_with_what_is_near(self) -> None:
        calendar("German holidays")
        with pytest.raises(CalendarError, match="did you mean 'German holidays'"):
            calendars.named("German holyday")

    def test_one_in_use_is_not_removed_and_says_by_whom(self) -> None:
        row = following()
        with pytest.raises(CalendarError, match="is followed by the schedules 'nightly'"):
            calendars.remove(calendar_of(row), by="ann")


MINUTELY = RuleFields("*", "*", "*", "*", "*", "UTC", days_off=WEEKEND, excluded_day="skip")
DAILY = MINUTELY._replace(minute="0", hour="9")


def due(next_due_at: datetime, now: datetime, fields: RuleFields = DAILY, **columns: Any) -> Due:
    values: dict[str, Any] = {
        "now": now, "schedule_id": 7, "next_due_at": next_due_at, "needs_plan": False,
        "last_due_at": None, "anchor_at": None, "one_off": False,
        "task": "t", "args": "[]", "kwargs": "{}", "headers": "", "queue": None,
        "exchange": None, "routing_key": None, "priority": None,
        "catch_up": "latest", "catch_up_window": None, "overlap": "allow", "spread": timedelta(0),
        "deadline_after": None, "expire_seconds": None, "rule": "",
        "replaced_at": LONG_AGO, "fields": fields,
    }  # fmt: skip
    return Due(**{**values, **columns})


SATURDAY_9 = SATURDAY.replace(hour=9)
MONDAY_9 = MONDAY.replace(hour=9)


class TestSkipping:
    def test_an_occurrence_on_a_day_off_is_recorded_as_skipped(self) -> None:
        (only,), moved = decide(due(SATURDAY_9, SATURDAY_9), Unfinished())
        assert only.state == State.SKIPPED
        assert only.reason == "calendar 'weekend': 2026-11-21 Saturday"
        assert moved.next_due_at == SATURDAY_9 + DAY

    def test_after_an_outage_over_days_off_they_have_one_row_and_what_was_to_run_comes_next(
        self,
    ) -> None:
        (skipped,), moved = decide(due(SATURDAY_9, MONDAY_9 + 2 * DAY), Unfinished())
        assert (skipped.state, skipped.coalesced) == (State.SKIPPED, 1)  # Sunday
        assert moved.next_due_at == MONDAY_9
        (late,), moved = decide(due(MONDAY_9, MONDAY_9 + 2 * DAY), Unfinished())
        assert (late.state, late.coalesced) == (State.SCHEDULED, 2)
        assert moved.next_due_at == MONDAY_9 + 3 * DAY

    def test_the_run_of_an_outage_stands_for_what_was_to_run_only(self) -> None:
        friday = NOON.replace(hour=9)
        (late,), moved = decide(due(friday, MONDAY_9, expire_seconds=60), Unfinished())
        assert (late.due_at, late.state, late.coalesced) == (friday, State.SCHEDULED, 1)
        assert late.expires_at == MONDAY_9 + timedelta(minutes=1)
        (late,), moved = decide(due(friday, MONDAY_9 - DAY, expire_seconds=60), Unfinished())
        assert (late.coalesced, late.expires_at) == (0, friday + timedelta(minutes=1))
        assert moved.next_due_at == MONDAY_9

    def test_an_outage_within_days_off_only_skips(self) -> None:
        (skipped,), moved = decide(due(SATURDAY, SATURDAY + DAY, MINUTELY), Unfinished())
        assert (skipped.state, skipped.coalesced) == (State.SKIPPED, 1440)
        assert moved.next_due_at == SATURDAY + DAY + timedelta(minutes=1)

    @pytest.mark.parametrize("catch_up", ["all", "none"])
    def test_rows_of_their_own_are_skipped_each(self, catch_up: str) -> None:
        plan = due(SATURDAY_9, MONDAY_9 + DAY, catch_up=catch_up, catch_up_window=7 * DAY)
        runs, _ = decide(plan, Unfinished())
        states = [(run.due_at.day, run.state) for run in runs]
        first, second = State.SCHEDULED, State.HELD if catch_up == "all" else State.SCHEDULED
        assert states == [
            (21, State.SKIPPED), (22, State.SKIPPED), (23, first), (24, second),
        ]  # fmt: skip

    def test_an_occurrence_on_a_day_off_overlaps_with_nothing(self) -> None:
        (only,), _ = decide(
            due(SATURDAY_9, SATURDAY_9, overlap="skip"), Unfinished(running=1, all=1)
        )
        assert only.reason.startswith("calendar")

    def test_thirty_days_of_minutes_are_counted_in_no_time(self) -> None:
        for fields in (MINUTELY, RuleFields(every=1, period="minutes", days_off=WEEKEND,
                                            excluded_day="skip")):  # fmt: skip
            plan = due(MONDAY, MONDAY + 30 * DAY, fields, anchor_at=LONG_AGO)
            (only,), _ = decide(plan, Unfinished())
            assert only.coalesced == 22 * 1440

    def test_a_one_off_that_repeats_waits_for_a_working_day(self) -> None:
        (skipped,), moved = decide(due(SATURDAY_9, SATURDAY_9, one_off=True), Unfinished())
        assert (skipped.state, moved.done) == (State.SKIPPED, False)
        assert moved.next_due_at == SATURDAY_9 + DAY
        (only,), moved = decide(due(MONDAY_9, MONDAY_9, one_off=True), Unfinished())
        assert (only.state, moved.done, moved.next_due_at) == (State.SCHEDULED, True, None)

    def test_a_single_instant_on_a_day_off_is_done(self) -> None:
        fields = RuleFields(clocked_time=SATURDAY_9, days_off=WEEKEND, excluded_day="skip")
        (only,), moved = decide(due(SATURDAY_9, SATURDAY_9, fields, one_off=True), Unfinished())
        assert (only.state, moved.done, moved.next_due_at) == (State.SKIPPED, True, None)

    def test_what_was_due_before_an_edit_that_spoils_the_rule_runs(self) -> None:
        fields = DAILY._replace(hour="99")
        plan = due(SATURDAY_9, SATURDAY_9, fields, needs_plan=True, replaced_at=MONDAY)
        (only,), _ = decide(plan, Unfinished())
        assert only.state == State.SCHEDULED

    def test_what_was_due_before_an_edit_is_of_its_own_day(self) -> None:
        fields = DAILY._replace(hour="10")
        plan = due(MONDAY_9, MONDAY_9, fields, needs_plan=True, replaced_at=MONDAY_9 + DAY)
        (only,), _ = decide(plan, Unfinished())
        assert only.state == State.SCHEDULED

    def test_a_country_that_nobody_knows_puts_the_schedule_in_quarantine(self) -> None:
        unknown = recurrence.days_off("x", country="XX")
        plan = due(MONDAY_9, MONDAY_9, DAILY._replace(days_off=unknown))
        (only,), moved = decide(plan, Unfinished())
        assert only.state == State.SKIPPED
        assert "country 'XX'" in moved.error


def changed(fields: RuleFields, **columns: Any) -> Changed:
    values: dict[str, Any] = {
        "schedule_id": 1, "plan_from": NOON, "anchor_at": None, "last_due_at": None, "rule": "",
        "done": False, "enabled": True, "task": "t", "args": "[]", "kwargs": "{}",
        "paused_at": None, "paused_until": None, "fields": fields,
    }  # fmt: skip
    return Changed(**{**values, **columns})


class TestPlanning:
    def test_a_moved_instant_is_planned(self) -> None:
        fields = DAILY._replace(day_of_week="0", excluded_day="next")
        assert plan(changed(fields)).next_due_at == MONDAY_9

    def test_a_change_of_days_off_keeps_the_anchor(self) -> None:
        bare = RuleFields(every=7, period="days")
        fields = bare._replace(days_off=WEEKEND, excluded_day="next")
        made = plan(changed(fields, anchor_at=SATURDAY - 7 * DAY, rule=bare.serialised()))
        assert (made.anchor_at, made.next_due_at) == (SATURDAY - 7 * DAY, MONDAY)

    @pytest.mark.parametrize(("excluded_day", "expected"), [("next", MONDAY), ("previous", NOON)])
    def test_a_single_instant_moves(self, excluded_day: str, expected: datetime) -> None:
        fields = RuleFields(
            clocked_time=expected.replace(day=21), days_off=WEEKEND, excluded_day=excluded_day
        )
        made = plan(changed(fields, plan_from=NOON - DAY))
        assert made.next_due_at == expected

    def test_a_single_instant_that_an_edit_moves_into_the_past_stands(self) -> None:
        bare = RuleFields(clocked_time=SATURDAY)
        fields = bare._replace(days_off=WEEKEND, excluded_day="previous")
        made = plan(changed(fields, rule=bare.serialised()))
        assert made.next_due_at == SATURDAY - DAY
        over = plan(changed(fields, rule=bare.serialised(), plan_from=MONDAY))
        assert over.next_due_at is None

    def test_the_plan_says_which_holidays_it_was_made_with(self) -> None:
        german = recurrence.days_off("DE", country="DE")
        versions = {
            plan(changed(DAILY._replace(days_off=days))).rule_version
            for days in (None, WEEKEND, german)
        }
        bare = planning.rule_version()
        assert versions == {bare, f"{bare}/holidays {recurrence.holidays_version()}"}

    def test_an_unknown_country_is_a_quarantine(self) -> None:
        unknown = recurrence.days_off("x", country="XX")
        made = plan(changed(DAILY._replace(days_off=unknown, excluded_day="next")))
        assert made.next_due_at is None
        assert "no public holidays are known for the country 'XX'" in made.error


@pytest.mark.django_db(transaction=True)
class TestFiring:
    """With the ledger: every planned instant has its row."""

    def test_a_due_occurrence_on_a_day_off_is_a_skipped_row(self) -> None:
        row, now = following(crontab=far_off()), clock.now()
        calendar_of(row).dates.create(date=now.date(), reason="closed today")
        set_plan(row, now)
        firing.fire_due(LONG_AGO)
        (made,) = runs_of(row)
        assert made.state == State.SKIPPED
        assert made.reason.endswith("closed today")
        assert made.finished_at is not None
        assert plan_of(row).next_due_at is not None

    def test_others_in_its_batch_run(self) -> None:
        row, other, now = following(crontab=far_off()), schedule("other"), clock.now()
        calendar_of(row).dates.create(date=now.date())
        for each in (row, other):
            set_plan(each, now)
        firing.fire_due(LONG_AGO)
        assert [made.state for made in runs_of(other)] == [State.SCHEDULED]

    def test_a_schedule_without_a_calendar_costs_no_query_more(self) -> None:
        row = schedule(policy={})
        set_plan(row, clock.now())
        with CaptureQueriesContext(connection) as asked:
            firing.fire_due(LONG_AGO)
        assert not [query for query in asked if "FROM scheduling_calendar" in query["sql"]]

    def test_a_day_off_replaces_nothing(self) -> None:
        row, now = following(crontab=far_off()), clock.now()
        Policy.objects.filter(schedule=row).update(overlap="replace")
        calendar_of(row).dates.create(date=now.date())
        old = run(State.RUNNING, schedule_id=row.pk, schedule_name=row.name)
        set_plan(row, now)
        firing.fire_due(LONG_AGO)
        assert Run.objects.get(pk=old.pk).cancel_requested_by == ""

    def test_a_single_instant_on_a_day_off_is_moved_and_planned(self) -> None:
        days = calendar(weekdays=[])
        at = clock.now() + timedelta(days=400)
        days.dates.create(date=at.date())
        row = schedule(
            clocked=ClockedSchedule.objects.create(clocked_time=at), one_off=True,
            policy={"calendar": days, "excluded_day": "next"},
        )  # fmt: skip
        planning.plan_changed()
        assert plan_of(row).next_due_at == at + DAY
        days.dates.all().delete()
        planning.plan_changed()
        assert plan_of(row).next_due_at == at

    def test_an_interval_keeps_its_anchor_when_the_calendar_changes(self) -> None:
        row = schedule(interval=interval(1, "days"), policy={"calendar": calendar(weekdays=[])})
        planning.plan_changed()
        anchor = plan_of(row).anchor_at
        Calendar.objects.update(weekdays=[0])
        assert planning.plan_changed() == 1
        assert plan_of(row).anchor_at == anchor

    def test_a_backfill_leaves_days_off_out(self) -> None:
        row = schedules.named(following().name)
        asked = backfilling.extent(row, NOON, MONDAY + DAY, now=NEXT_YEAR)
        assert list(asked.instants) == [MONDAY_9]

    def test_an_audit_looks_at_plans_that_other_holidays_made(self) -> None:
        days = calendar(country="DE")
        row = schedule(crontab=crontab("0", "9"), policy={"calendar": days})
        planning.plan_changed()
        assert not [batch for batch in upgrade_check.check() if row.pk in batch.schedule_ids]
        older = f"{planning.rule_version()}/holidays 0.1"
        Plan.objects.filter(pk=row.pk).update(rule_version=older, next_due_at=NEXT_YEAR)
        (moved,) = [moved for batch in upgrade_check.check() for moved in batch.moved]
        assert (moved.schedule_id, moved.planned, moved.version) == (row.pk, NEXT_YEAR, older)
