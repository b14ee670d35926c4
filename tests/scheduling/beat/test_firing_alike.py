"""Plans that are alike are decided on once: the same must come of it as of deciding one by one."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from random import Random
from typing import Any

import pytest
from django.db import connection, transaction
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
)

from scheduling import clock
from scheduling.beat import due_plans, firing
from scheduling.beat.deciding import decide
from scheduling.models import Calendar, CatchUp, Overlap, Plan, Policy, Priority, Run, State
from scheduling.runs.hints import Lane
from scheduling.schedules.rules import RuleFields
from tests.scheduling.ledger import (
    LONG_AGO,
    crontab,
    interval,
    plan_of,
    run,
    runs_of,
    schedule,
    set_plan,
)

RUNS = """
SELECT schedule_id, due_at, run_at, state, reason, coalesced, queue, priority, options, deadline,
    expires_at, max_attempts, args, cancel_requested_by
  FROM scheduling_run ORDER BY schedule_id, due_at, id
"""
PLANS = """
SELECT schedule_id, next_due_at, last_due_at, fired_count, error, done, needs_plan
  FROM scheduling_plan ORDER BY schedule_id
"""
ELAPSED = re.compile(r"noticed .* after")


@contextmanager
def decisions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Record the schedules that are decided on."""
    asked: list[int] = []

    def noting(plan: Any, unfinished: Any, step: int) -> Any:
        asked.append(plan.schedule_id)
        return decide(plan, unfinished, step)

    with monkeypatch.context() as patch:
        patch.setattr(firing, "decide", noting)
        yield asked


def overdue(name: str, policy: dict[str, Any] | None = None, **columns: Any) -> PeriodicTask:
    """Write an hourly schedule that was due three hours ago."""
    row = schedule(name, policy=policy, **columns)
    set_plan(row, clock.now().replace(minute=0, second=0, microsecond=0) - timedelta(hours=3))
    return row


def half_an_hour_away(now: datetime) -> CrontabSchedule:
    """Write an hourly rule none of whose instants comes while the test runs."""
    return crontab(str((now.minute + 30) % 60))


def what_became() -> tuple[list[Any], list[Any]]:
    with connection.cursor() as cursor:
        cursor.execute(RUNS)
        runs = [
            tuple(ELAPSED.sub("", value) if isinstance(value, str) else value for value in row)
            for row in cursor.fetchall()
        ]
        cursor.execute(PLANS)
        return runs, cursor.fetchall()


def fired(limit: int) -> tuple[list[Any], list[Any]]:
    """Fire all due plans, `limit` at a time; return the result, and roll it back."""
    with transaction.atomic():
        while firing.fire_due(LONG_AGO, limit).plans:
            pass
        became = what_became()
        transaction.set_rollback(True)
    return became


class Mix:
    """A random mix of schedules, of which many are alike."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        now = clock.now()
        # No occurrence lies near the present, nor near the end of a window or an expiry: time
        # passes between one way of firing and the other.
        hourly = half_an_hour_away(now)
        self.dues = [now - timedelta(hours=count, minutes=25) for count in (1, 1, 3, 30)]
        self.edits = [now - timedelta(minutes=30), now - timedelta(hours=40)]
        self.rules: list[dict[str, Any]] = [
            *[{"crontab": hourly}] * 3,
            {"crontab": crontab(hourly.minute, "*/2", timezone="Europe/Paris")},
            {"interval": interval(50)},
            {"clocked": ClockedSchedule.objects.create(clocked_time=self.dues[0]), "one_off": True},
        ]
        weekdays = Calendar.objects.create(name=f"weekdays {seed}", weekdays=[1, 2, 3, 4, 5])
        self.calendars = [None, None, None, weekdays]

    def any_of(self, *values: Any) -> Any:
        return self.random.choice(values)

    def policy(self) -> dict[str, Any] | None:
        if self.random.random() < 0.4:
            return None
        hours = timedelta(hours=2)
        return {
            "catch_up": self.any_of(*CatchUp.values),
            "catch_up_window": self.any_of(None, None, hours, timedelta(days=3)),
            "overlap": self.any_of(*Overlap.values),
            "spread": self.any_of(timedelta(0), timedelta(0), hours),
            "deadline_after": self.any_of(None, hours),
            "max_attempts": self.any_of(None, 2),
            "calendar": self.any_of(*self.calendars),
        }

    def kind(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the columns that several schedules share, and their plans."""
        columns = {
            "task": self.any_of("t", "t", "u"),
            "queue": self.any_of(None, None, "mails"),
            "priority": self.any_of(None, None, 3),
            "headers": self.any_of("{}", "{}", '{"a": 1}'),
            "expire_seconds": self.any_of(None, None, 7200),
            "policy": self.policy(),
            **self.any_of(*self.rules),
        }
        plan = {"next_due_at": self.any_of(*self.dues), "anchor_at": self.dues[-1]}
        if self.random.random() < 0.2:
            edited, old = self.any_of(*self.edits), "|".join(["5", *"****", "UTC", *[""] * 7])
            plan |= {
                "needs_plan": True, "plan_from": edited, "replaced_at": edited,
                "rule": self.any_of("", old),
            }  # fmt: skip
        return columns, plan

    def write(self, name: str, columns: dict[str, Any], plan: dict[str, Any]) -> None:
        """Write one of that kind: its last instant, arguments and unfinished runs are its own."""
        args = self.any_of("[1,", "{}", *["", f'["{name}"]'] * 5)
        row = schedule(name, args=args, **columns)
        last = self.any_of(None, *self.dues)
        set_plan(row, **plan, last_due_at=last)
        if self.random.random() < 0.4:
            run(self.any_of(State.RUNNING, State.HELD, State.QUEUED), schedule_id=row.pk)


@pytest.mark.django_db
class TestAlike:
    @pytest.mark.parametrize("seed", [1, 2, 3])
    def test_the_same_comes_of_plans_together_as_one_by_one(
        self, seed: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mix = Mix(seed)
        kinds = [mix.kind() for _ in range(30)]
        for number in range(120):
            mix.write(f"mixed {number}", *mix.any_of(*kinds))
        with decisions(monkeypatch) as alone:
            one_by_one = fired(limit=1)
        with decisions(monkeypatch) as shared:
            together = fired(limit=500)
        assert together == one_by_one
        assert len(together[0]) > 120
        assert len(shared) < 0.8 * len(alone)

    def test_a_herd_is_one_decision(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = clock.now()
        rule = half_an_hour_away(now)
        rows = [overdue(f"n{n}", args=f"[{n}]", crontab=rule) for n in range(30)]
        Plan.objects.filter(schedule__in=rows).update(next_due_at=now - timedelta(hours=3))
        with decisions(monkeypatch) as asked:
            done = firing.fire_due(LONG_AGO)
        assert len(asked) == 1
        assert done.plans == 30
        assert sorted(done.schedule_ids) == [row.pk for row in rows]
        made = [one for row in rows for one in runs_of(row)]
        assert len({one.pk for one in made}) == 30
        assert [one.args for one in made] == [f"[{n}]" for n in range(30)]
        assert {one.coalesced for one in made} == {3}

    def test_a_bad_one_among_them_is_in_quarantine_alone(self) -> None:
        rule = crontab("0")
        rows = [overdue(f"n{n}", crontab=rule) for n in range(5)]
        PeriodicTask.objects.filter(pk=rows[2].pk).update(args="[1,")
        Plan.objects.update(needs_plan=False)
        firing.fire_due(LONG_AGO)
        states = [[one.state for one in runs_of(row)] for row in rows]
        assert states == [["scheduled"], ["scheduled"], ["skipped"], ["scheduled"], ["scheduled"]]
        assert [bool(plan_of(row).error) for row in rows] == [False, False, True, False, False]

    def test_a_rule_that_cannot_be_evaluated_puts_each_of_its_schedules_in_quarantine(self) -> None:
        rule, other = crontab("0"), overdue("other", crontab=crontab("0", "*/2"))
        rows = [overdue(f"n{n}", crontab=rule) for n in range(3)]
        CrontabSchedule.objects.filter(pk=rule.pk).update(hour="soon")
        Plan.objects.update(needs_plan=False)
        firing.fire_due(LONG_AGO)
        for row in rows:
            (made,) = runs_of(row)
            assert made.state == State.SKIPPED
            assert "soon" in made.reason
            assert plan_of(row).error == made.reason
            assert plan_of(row).next_due_at is None
        assert [one.state for one in runs_of(other)] == [State.SCHEDULED]

    def test_room_for_some_of_them_is_for_the_first(self) -> None:
        rule = crontab("0")
        for n in range(5):
            overdue(f"n{n}", crontab=rule)
        room = {Lane("celery", Priority.MEDIUM): 2}
        hints = firing.fire_due(LONG_AGO, room=room).hints
        queued = Run.objects.filter(state=State.QUEUED)
        assert {str(one.pk) for one in queued} == {hint.id for hint in hints}
        assert (len(hints), Run.objects.filter(state=State.SCHEDULED).count()) == (2, 3)

    def test_each_has_its_own_offset(self) -> None:
        rule, policy = crontab("0"), {"spread": timedelta(hours=1)}
        rows = [overdue(f"n{n}", policy=policy, crontab=rule) for n in range(5)]
        firing.fire_due(LONG_AGO)
        assert len({one.run_at for row in rows for one in runs_of(row)}) == 5

    def test_intervals_of_other_anchors_have_other_instants(self) -> None:
        rule: IntervalSchedule = interval(50)
        rows = [overdue(f"n{n}", interval=rule) for n in range(3)]
        for n, row in enumerate(rows):
            due = plan_of(row).next_due_at
            assert due is not None
            Plan.objects.filter(schedule=row).update(anchor_at=due - timedelta(minutes=n))
        firing.fire_due(LONG_AGO)
        assert len({plan_of(row).next_due_at for row in rows}) == 3

    def test_an_edited_plan_still_has_what_counts_for_it_alone(self) -> None:
        now = clock.now()
        edited = {"needs_plan": True, "plan_from": now, "replaced_at": now}
        was_interval = overdue("was an interval", crontab=crontab("0"))
        Plan.objects.filter(schedule=was_interval).update(
            **edited,
            next_due_at=now - timedelta(minutes=100),
            anchor_at=now - timedelta(minutes=100),
            rule=RuleFields(every=30, period="minutes").serialised(),
        )
        replaced = overdue("replaced in time", crontab=crontab("0"))
        last = now - timedelta(days=1)
        Plan.objects.filter(schedule=replaced).update(
            **{**edited, "replaced_at": now - timedelta(hours=9)}, last_due_at=last
        )
        firing.fire_due(LONG_AGO)
        assert [one.coalesced for one in runs_of(was_interval)] == [3]
        assert runs_of(replaced) == []
        assert (plan_of(replaced).last_due_at, plan_of(replaced).next_due_at) == (last, None)

    def test_long_arguments_are_in_nobodys_company(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rule, long = crontab("0"), f'["{"x" * 12_000}"]'
        rows = [overdue(f"n{n}", args=long, crontab=rule) for n in range(3)]
        with decisions(monkeypatch) as asked:
            firing.fire_due(LONG_AGO)
        assert sorted(asked) == [row.pk for row in rows]
        assert all(len(runs_of(row)) == 1 for row in rows)

    def test_a_replaced_run_is_cancelled_for_its_own_schedule_alone(self) -> None:
        rule = crontab("0")
        rows = [overdue(f"n{n}", policy={"overlap": "replace"}, crontab=rule) for n in range(4)]
        waiting = [run(schedule_id=row.pk) for row in rows[:2]]
        running = run(State.RUNNING, schedule_id=rows[2].pk)
        firing.fire_due(LONG_AGO)
        for row, one in zip(rows[:2], waiting, strict=True):
            one.refresh_from_db()
            assert (one.state, f"schedule {row.pk}:" in one.reason) == (State.CANCELLED, True)
        running.refresh_from_db()
        assert f"schedule {rows[2].pk}:" in running.cancel_requested_by
        newest = [runs_of(row)[0].state for row in rows]  # due before the others were made
        assert newest == [State.SCHEDULED, State.SCHEDULED, State.HELD, State.SCHEDULED]


@pytest.mark.django_db
def test_a_batch_looks_its_rows_up_however_many_are_due() -> None:
    rule = crontab("0")
    PeriodicTask.objects.bulk_create(
        [PeriodicTask(name=f"many {n}", task="t", crontab=rule) for n in range(3000)]
    )
    Plan.objects.update(next_due_at=LONG_AGO + timedelta(days=1), needs_plan=False)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE scheduling_plan, django_celery_beat_periodictask")
        assert firing.fire_due(LONG_AGO).plans == firing.BATCH  # its settings hold for the test's
        cursor.execute("SELECT name, cardinality(parameter_types) FROM pg_prepared_statements")
        plans = []
        for name, count in cursor.fetchall():
            cursor.execute(f"EXPLAIN EXECUTE {name}({', '.join(['NULL'] * count)})")
            plans.append("\n".join(line for (line,) in cursor.fetchall()))
    (locking,) = [plan for plan in plans if "LockRows" in plan]
    (writing,) = [plan for plan in plans if "Insert on scheduling_run" in plan]
    assert re.search(r"LockRows.*\n *->  Index Scan using plan_due on scheduling_plan", locking)
    assert "Index Scan using scheduling_plan_pkey" in writing
    for plan in locking, writing:
        assert "Index Scan using django_celery_beat_periodictask_pkey" in plan
        assert not re.search("Seq Scan|Bitmap", plan)


def test_the_policy_has_no_other_columns_that_a_decision_could_rest_on() -> None:
    """Each column is either one by which plans are alike, or does not matter for a decision."""
    elsewhere = {
        "schedule", "max_attempts", "pause_after_failures", "paused_at", "paused_until",
        "pause_reason", "paused_by", "resumed_at", "owner", "managed_by",
    }  # fmt: skip
    columns = {field.name for field in Policy._meta.get_fields()} - elsewhere
    shape = set(due_plans.ALIKE_IN)
    assert {name.replace("calendar", "calendar_id") for name in columns} <= shape
