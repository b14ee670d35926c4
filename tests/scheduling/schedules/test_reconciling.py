"""Comparison finds changes that no trigger saw: missing plans, edits, rows without an owner."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.core import checks
from django.core.management import call_command
from django.db import connection
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    SolarSchedule,
)

from scheduling import clock
from scheduling.models import Calendar, ExcludedDate, Plan, Policy
from scheduling.schedules import last_runs, planning, reconciling, upgrade_check
from scheduling.schedules.rules import fields_of
from scheduling.schedules.standing import standing
from tests.scheduling.ledger import (
    LONG_AGO,
    crontab,
    interval,
    no_triggers,
    plan_of,
    schedule,
    set_plan,
)

pytestmark = pytest.mark.django_db

IN_A_YEAR = datetime.now(UTC) + timedelta(days=365)


@pytest.fixture(autouse=True)
def _no_schedules_yet(db: None) -> None:
    PeriodicTask.objects.all().delete()


@pytest.fixture
def dangling(db: None) -> Iterator[None]:
    """Take the test's rows away before Django checks their foreign keys at its end."""
    yield
    with no_triggers():
        Policy.objects.all().delete()
        PeriodicTask.objects.all().delete()


def planned(**columns: Any) -> PeriodicTask:
    row = schedule(**columns)
    while planning.plan_changed():
        pass
    assert not plan_of(row).needs_plan
    return row


def paused(**policy: Any) -> dict[str, Any]:
    return {"policy": {"paused_at": LONG_AGO, **policy}}


class TestSchedulesWithoutAPlan:
    def test_each_gets_one_that_counts_from_now(self) -> None:
        with no_triggers():
            rows = [schedule(f"s{n}") for n in range(7)]
        assert not Plan.objects.exists()
        before = clock.now()
        assert reconciling.plan_missing(limit=3) == 7
        for row in rows:
            plan = plan_of(row)
            assert plan.needs_plan
            assert plan.plan_from >= before
        assert reconciling.reconcile() == {}

    def test_migrate_says_how_many(self, capsys: pytest.CaptureFixture[str]) -> None:
        with no_triggers():
            row = schedule()
        call_command("migrate", verbosity=1)
        assert "1 schedules had no plan: they are planned now." in capsys.readouterr().out
        assert plan_of(row).needs_plan

    def test_a_check_says_so(self) -> None:
        assert "scheduling.W005" not in warnings()
        with no_triggers():
            schedule()
        assert "scheduling.W005" in warnings()


EDITS: dict[str, tuple[dict[str, Any], Callable[[PeriodicTask], object]]] = {
    "its rule": ({}, lambda row: CrontabSchedule.objects.update(hour="7")),
    "another rule of the same kind": ({}, lambda row: update(row, crontab=crontab("0", "7"))),
    "a rule of another kind": ({}, lambda row: update(row, crontab=None, interval=interval(5))),
    "an interval's length": (
        {"interval": interval}, lambda row: IntervalSchedule.objects.update(every=9)
    ),
    "an instant": (
        {"clocked": IN_A_YEAR, "one_off": True},
        lambda row: ClockedSchedule.objects.update(clocked_time=IN_A_YEAR + timedelta(days=1)),
    ),
    "a place": ({"solar": Decimal("51.5")}, lambda row: SolarSchedule.objects.update(latitude=9)),
    "its start": ({}, lambda row: update(row, start_time=IN_A_YEAR)),
    "its end": ({}, lambda row: update(row, expires=clock.now())),
    "a later end": (
        {"expires": datetime(2020, 1, 1, tzinfo=UTC)}, lambda row: update(row, expires=None)
    ),
    "that it is off": ({}, lambda row: update(row, enabled=False)),
    "that it is on": ({"enabled": False}, lambda row: update(row, enabled=True)),
    "a pause": ({}, lambda row: Policy.objects.create(schedule=row, paused_at=clock.now())),
    "a pause with an end": (
        {},
        lambda row: Policy.objects.create(
            schedule=row, paused_at=clock.now(), paused_until=IN_A_YEAR
        ),
    ),
    "the end of a pause": (paused(), lambda row: Policy.objects.update(paused_at=None)),
    "a policy that is gone": (paused(), lambda row: Policy.objects.filter(schedule=row).delete()),
    "the end of a pause that had one": (
        {"crontab": "daily", **paused(paused_until=IN_A_YEAR)},
        lambda row: Policy.objects.update(paused_at=None, paused_until=None),
    ),
    "arguments that can be read": ({"args": "[1,"}, lambda row: update(row, args="[1, 2]")),
    "a rule that can be read": (
        {"crontab": "unreadable"}, lambda row: CrontabSchedule.objects.update(minute="1")
    ),
    "a rule that is gone": ({}, lambda row: CrontabSchedule.objects.all()._raw_delete("default")),
}  # fmt: skip


def update(row: PeriodicTask, **columns: Any) -> None:
    PeriodicTask.objects.filter(pk=row.pk).update(**columns)


def with_rules(columns: dict[str, Any]) -> dict[str, Any]:
    """Return columns with the rules' rows that EDITS only names, as no database is there yet."""
    made = dict(columns)
    if "interval" in made:
        made["interval"] = interval(5)
    if at := made.get("clocked"):
        made["clocked"] = ClockedSchedule.objects.create(clocked_time=at)
    if latitude := made.get("solar"):
        made["solar"] = SolarSchedule.objects.create(
            event="sunrise", latitude=latitude, longitude=Decimal("-0.12")
        )
    if made.get("crontab") == "daily":
        made["crontab"] = crontab("0", "6")
    if made.get("crontab") == "unreadable":
        made["crontab"] = crontab("61")
    return made


class TestEditsThatNoTriggerSaw:
    @pytest.mark.usefixtures("dangling")
    @pytest.mark.parametrize("what", EDITS)
    def test_its_plan_is_asked_for(self, what: str) -> None:
        columns, edit = EDITS[what]
        row = planned(**with_rules(columns))
        assert reconciling.reconcile() == {}
        with no_triggers():
            edit(row)
        assert not plan_of(row).needs_plan
        assert reconciling.reconcile() == {"asked": 1}
        assert plan_of(row).needs_plan
        planning.plan_changed()
        assert reconciling.reconcile() == {}

    def test_a_one_off_that_was_armed_again_is_planned(self) -> None:
        row = planned(one_off=True)
        set_plan(row, None, done=True, last_due_at=clock.now(), fired_count=1,
                 rule=fields_of(row).serialised())  # fmt: skip
        last_runs.copy_forgotten()
        planning.plan_changed()
        row.refresh_from_db()
        assert not row.enabled
        with no_triggers():
            update(row, enabled=True)
        assert reconciling.reconcile() == {"asked": 1}
        planning.plan_changed()
        assert plan_of(row).next_due_at is not None

    def test_one_that_has_just_fired_and_is_not_copied_yet_stays_done(self) -> None:
        row = planned(one_off=True)
        set_plan(row, None, done=True, last_due_at=clock.now(), fired_count=1,
                 rule=fields_of(row).serialised())  # fmt: skip
        assert reconciling.reconcile() == {}
        assert plan_of(row).done

    def test_plans_of_another_version_are_left_to_the_audit(self) -> None:
        row = planned()
        Plan.objects.filter(schedule=row).update(rule_version="0/2020a", next_due_at=IN_A_YEAR)
        assert reconciling.reconcile() == {}

    def test_many_are_found_page_by_page(self) -> None:
        rows = [planned(name=f"s{n}", crontab=crontab("0", "6")) for n in range(5)]
        with no_triggers():
            CrontabSchedule.objects.update(hour="7")
        assert reconciling.ask_where_overlooked(limit=2) == 5
        assert all(plan_of(row).needs_plan for row in rows)

    def test_what_cannot_be_otherwise_is_not_asked_for(self) -> None:
        planned(name="plain")
        planned(name="off", enabled=False)
        planned(name="paused", policy={"paused_at": clock.now()})
        planned(name="over", expires=datetime(2020, 1, 1, tzinfo=UTC))
        planned(name="broken", args="[1,")
        planned(name="seconds", interval=interval(90, "seconds"),
                start_time=datetime(2020, 1, 1, 0, 0, 0, 123, tzinfo=UTC))  # fmt: skip
        once = ClockedSchedule.objects.create(clocked_time=IN_A_YEAR)
        planned(name="once", clocked=once, one_off=True)
        assert reconciling.reconcile() == {}


def test_plans_as_they_should_be_are_told_without_computing_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    off = Calendar.objects.create(name="off", country="DE", weekdays=[6])
    started = datetime(2020, 1, 1, 0, 0, 0, 120, tzinfo=UTC)
    planned(name="plain", crontab=crontab("*/5", "8-18"))
    planned(name="treated", crontab=crontab("*/5"), policy={"calendar": off})
    planned(name="seconds", interval=interval(90, "seconds"), start_time=started)
    planned(name="off", enabled=False, start_time=started.replace(microsecond=0))
    place = SolarSchedule.objects.create(event="sunset", latitude=0, longitude=Decimal("-0.12"))
    planned(name="place", solar=place)
    planned(name="now", one_off=True, clocked=ClockedSchedule.objects.create(
        clocked_time=clock.now() + timedelta(hours=1)))  # fmt: skip
    computed = list[int]()

    def compared(ids: Sequence[int]) -> list[upgrade_check.Compared]:
        computed.extend(ids)
        return []

    monkeypatch.setattr(upgrade_check, "compared", compared)
    reconciling.ask_where_overlooked()
    names = PeriodicTask.objects.filter(pk__in=computed).values_list("name", flat=True)
    assert list(names) == []


class TestCalendars:
    @pytest.fixture
    def row(self) -> PeriodicTask:
        off = Calendar.objects.create(name="off", weekdays=[5, 6])
        return planned(crontab=crontab("0", "6"), policy={"calendar": off})

    @pytest.mark.parametrize(
        "edit",
        [
            lambda: Calendar.objects.update(weekdays=[0, 6]),
            lambda: ExcludedDate.objects.create(
                calendar=Calendar.objects.get(), date=date(2030, 1, 1)
            ),
        ],
    )
    def test_an_edit_that_no_trigger_saw_reaches_every_process(
        self, row: PeriodicTask, edit: Callable[[], object]
    ) -> None:
        version = Calendar.objects.get().version
        with no_triggers():
            edit()
        assert reconciling.reconcile() == {"asked": 1}
        assert Calendar.objects.get().version != version
        assert plan_of(row).needs_plan
        planning.plan_changed()
        assert reconciling.reconcile() == {}

    @pytest.mark.usefixtures("dangling")
    def test_one_that_is_gone_stops_its_schedules_and_says_so(self, row: PeriodicTask) -> None:
        with no_triggers():
            Calendar.objects.all()._raw_delete("default")
        assert reconciling.reconcile() == {"asked": 1}
        planning.plan_changed()
        assert "follows a calendar that does not exist" in plan_of(row).error
        assert "does not exist" in standing(PeriodicTask.objects.get(pk=row.pk)).problem

    def test_dates_of_one_that_is_gone_go_too(self) -> None:
        off = Calendar.objects.create(name="off")
        ExcludedDate.objects.create(calendar=off, date=date(2030, 1, 1))
        with no_triggers():
            Calendar.objects.all()._raw_delete("default")
        assert reconciling.reconcile() == {"dates": 1}
        assert not ExcludedDate.objects.exists()


class TestRowsWithoutASchedule:
    def orphan(self, count: int, **plan: Any) -> None:
        for n in range(count):
            planned(name=f"gone {n}", policy={"owner": "ops@example.org"})
        if plan:
            Plan.objects.update(**plan)
        with no_triggers():
            PeriodicTask.objects.all()._raw_delete("default")
        assert Plan.objects.count() == count

    def test_plans_and_policies_are_removed_and_written_to_the_log(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.orphan(3)
        kept = planned(name="kept", policy={"spread": timedelta(1)})
        assert reconciling.reconcile() == {"plans": 3, "policies": 3}
        assert list(Plan.objects.values_list("schedule_id", flat=True)) == [kept.pk]
        assert list(Policy.objects.values_list("schedule_id", flat=True)) == [kept.pk]
        told = [vars(record)["fields"] for record in caplog.records if "orphans" in record.message]
        assert "ops@example.org" in str(told)

    def test_one_that_is_to_be_planned_does_not_keep_beat_busy(self) -> None:
        self.orphan(2, needs_plan=True, plan_from=LONG_AGO, next_due_at=None)
        kept = schedule("kept")
        assert planning.plan_changed() == 3
        assert planning.plan_changed() == 0
        assert list(Plan.objects.values_list("schedule_id", flat=True)) == [kept.pk]

    def test_those_that_are_due_are_removed(self) -> None:
        self.orphan(3, next_due_at=clock.now() - timedelta(seconds=5))
        set_plan(schedule("kept"), clock.now() - timedelta(seconds=5))
        assert planning.remove_due_orphans() == 3
        assert Plan.objects.get().schedule.name == "kept"


class TestTriggers:
    def test_all_are_there_and_act(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT tgname FROM pg_trigger WHERE tgname LIKE 'scheduling\\_%'")
            assert {name for (name,) in cursor.fetchall()} == set(reconciling.TRIGGERS)
        assert reconciling.asleep() == []
        assert "scheduling.W006" not in warnings()

    def test_those_that_a_restore_left_disabled_are_told_of(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE django_celery_beat_periodictask DISABLE TRIGGER ALL")
        assert reconciling.asleep() == ["triggers of django_celery_beat_periodictask"]
        assert "scheduling.W006" in warnings()

    def test_one_that_is_missing_is_told_of(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER scheduling_policy_updated ON scheduling_policy")
        assert reconciling.asleep() == ["scheduling_policy_updated"]


def warnings() -> list[str | None]:
    found = checks.run_checks(tags=[checks.Tags.database], databases=["default"])
    return [message.id for message in found]
