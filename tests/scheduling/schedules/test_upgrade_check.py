"""After an upgrade: which plans a new rule engine would make otherwise."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core import checks
from django.db import connection
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, PeriodicTask

from scheduling import clock
from scheduling.models import Plan
from scheduling.schedules import planning, upgrade_check
from tests.scheduling.commands import called
from tests.scheduling.ledger import LONG_AGO, crontab, interval, plan_of, schedule

pytestmark = pytest.mark.django_db

OLD = "0/2020a"


@pytest.fixture(autouse=True)
def _no_schedules_yet(db: None) -> None:
    PeriodicTask.objects.all().delete()


def planned_by_an_old_version(name: str = "nightly", **columns: Any) -> PeriodicTask:
    """Return a schedule that is due at 06:00, with a plan that an old version has made."""
    row = schedule(name, **({"crontab": crontab("0", "6")} | columns))
    planning.plan_changed()
    Plan.objects.filter(schedule=row).update(rule_version=OLD)
    return row


def moved(**options: bool) -> list[upgrade_check.Moved]:
    return [one for batch in upgrade_check.check(**options) for one in batch.moved]


def move(row: PeriodicTask) -> datetime:
    """Move the plan an hour after the rule's instant; return the rule's instant."""
    says = plan_of(row).next_due_at
    assert says is not None
    Plan.objects.filter(schedule=row).update(next_due_at=says + timedelta(hours=1))
    return says


class TestTheAudit:
    def test_what_stays_where_it_is_is_no_news(self) -> None:
        planned_by_an_old_version()
        planned_by_an_old_version("interval", interval=interval(7), crontab=None)
        planned_by_an_old_version("off", enabled=False)
        planned_by_an_old_version("paused", policy={"paused_at": LONG_AGO})
        once = ClockedSchedule.objects.create(clocked_time=datetime(2099, 1, 1, tzinfo=UTC))
        planned_by_an_old_version("once", clocked=once, crontab=None, one_off=True)
        assert [len(batch.schedule_ids) for batch in upgrade_check.check()] == [5]
        assert moved() == []

    def test_what_moves_says_from_where_to_where(self) -> None:
        row = planned_by_an_old_version()
        says = move(row)
        (one,) = moved()
        assert (one.name, one.version, one.problem) == ("nightly", OLD, "")
        assert (one.planned, one.now) == (says + timedelta(hours=1), says)

    def test_a_rule_that_cannot_be_read_any_more_says_why(self) -> None:
        row = planned_by_an_old_version()
        CrontabSchedule.objects.filter(pk=row.crontab_id).update(minute="61")
        Plan.objects.update(needs_plan=False)  # as if this engine alone refused it
        (one,) = moved()
        assert one.now is None
        assert "61" in one.problem

    def test_what_could_not_be_read_before_and_can_now_moves_as_well(self) -> None:
        row = planned_by_an_old_version()
        Plan.objects.filter(schedule=row).update(next_due_at=None, error="not understood")
        (one,) = moved()
        assert (one.planned, one.now is None) == (None, False)

    def test_plans_of_this_version_are_looked_at_only_when_asked(self) -> None:
        row = planned_by_an_old_version()
        move(row)
        Plan.objects.update(rule_version=planning.rule_version())
        assert moved() == []
        assert len(moved(every=True)) == 1

    def test_what_is_asked_for_or_due_already_is_left_out(self) -> None:
        for columns in ({"needs_plan": True}, {"next_due_at": clock.now() - timedelta(minutes=1)}):
            row = planned_by_an_old_version(str(columns))
            Plan.objects.filter(schedule=row).update(**columns)
        assert list(upgrade_check.check()) == []

    def test_a_large_table_is_read_in_batches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(upgrade_check, "BATCH", 2)
        for n in range(5):
            move(planned_by_an_old_version(f"s{n}"))
        assert [len(batch.schedule_ids) for batch in upgrade_check.check()] == [2, 2, 1]
        assert [one.name for one in moved()] == [f"s{n}" for n in range(5)]


class TestPlanningAnew:
    def test_all_of_a_batch_are_planned_by_this_version(self) -> None:
        row, same = planned_by_an_old_version(), planned_by_an_old_version("same")
        says, stays = move(row), plan_of(same).next_due_at
        for batch in upgrade_check.check():
            upgrade_check.plan_anew(batch)
        before = plan_of(row)
        assert (before.needs_plan, before.next_due_at) == (True, says + timedelta(hours=1))
        planning.plan_changed()
        assert plan_of(row).next_due_at == says
        assert plan_of(same).next_due_at == stays
        assert not upgrade_check.is_due()

    def test_what_has_come_due_meanwhile_is_left_to_fire(self) -> None:
        row = planned_by_an_old_version()
        (batch,) = upgrade_check.check()
        Plan.objects.filter(schedule=row).update(next_due_at=clock.now())
        upgrade_check.plan_anew(batch)
        assert not plan_of(row).needs_plan


class TestTheCommand:
    def test_it_says_that_there_is_nothing_to_look_at(self) -> None:
        answer = called("schedule", "audit")
        assert answer.err == f"Every plan was made by this version ({planning.rule_version()}).\n"
        assert answer.out == ""

    def test_it_lists_what_moved_and_changes_nothing(self) -> None:
        move(planned_by_an_old_version())
        planned_by_an_old_version("same")
        answer = called("schedule", "audit")
        (_, line) = answer.lines
        assert line.startswith("nightly")
        assert line.endswith(f"planned by {OLD}")
        assert answer.err.startswith("1 of 2 checked plans have moved. With --fix")
        assert not Plan.objects.filter(needs_plan=True).exists()

    def test_fix_asks_for_new_plans_and_its_json_can_be_read(self) -> None:
        row = planned_by_an_old_version()
        says = move(row)
        answer = called("schedule", "audit", "--fix", "--json")
        (one,) = json.loads(answer.out)
        assert one["name"] == "nightly"
        assert datetime.fromisoformat(one["now"]) == says
        assert "Beat plans all checked ones again" in answer.err
        planning.plan_changed()
        assert moved() == []
        assert plan_of(row).next_due_at == says


class TestTheSystemCheck:
    def warnings(self) -> list[str | None]:
        found = checks.run_checks(tags=[checks.Tags.database], databases=["default"])
        return [message.id for message in found]

    def test_it_warns_of_plans_by_another_version_until_they_are_planned_anew(self) -> None:
        assert "scheduling.W002" not in self.warnings()
        planned_by_an_old_version()
        assert "scheduling.W002" in self.warnings()
        called("schedule", "audit", "--fix")
        planning.plan_changed()
        assert "scheduling.W002" not in self.warnings()

    def test_a_plan_that_no_version_could_make_is_no_reason_to_warn(self) -> None:
        row = planned_by_an_old_version()
        Plan.objects.filter(schedule=row).update(rule_version="", error="country 'XX'")
        assert "scheduling.W002" not in self.warnings()

    def test_it_costs_one_statement_that_ends_at_the_first_such_plan(self) -> None:
        planned_by_an_old_version()
        with connection.execute_wrapper(self._only_exists):
            assert upgrade_check.is_due()

    def _only_exists(self, execute: Any, sql: str, *rest: Any) -> Any:
        assert "LIMIT 1" in sql
        return execute(sql, *rest)
