"""Decisions on due plans: `decide` is pure, so these tests are tables of literal dates."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import current_app
from django.conf import settings as django_settings
from django.db import connection, transaction
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, PeriodicTask

from scheduling import clock
from scheduling.beat import due_plans, firing
from scheduling.beat.deciding import (
    CATCH_UP_MAX,
    CATCH_UP_STEP,
    Due,
    Moved,
    NewRun,
    Unfinished,
    decide,
)
from scheduling.models import Origin, Plan, Policy, Priority, Run, State
from scheduling.runs.hints import Lane
from scheduling.schedules import last_runs, planning
from scheduling.schedules.rules import RuleFields
from tests.scheduling.ledger import (
    LONG_AGO,
    NOON,
    WRITE,
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

HOURLY = RuleFields("0", "*", "*", "*", "*", "UTC")
MINUTELY = RuleFields("*", "*", "*", "*", "*", "UTC")
NONE_LEFT = Unfinished()


def at(hour: int, minute: int = 0, second: int = 0) -> datetime:
    return datetime(2026, 11, 20, hour, minute, second, tzinfo=UTC)


def due(next_due_at: datetime, fields: RuleFields = HOURLY, **columns: Any) -> Due:
    """Return a due plan, looked at 12:00:00.5 unless `now` says otherwise."""
    values: dict[str, Any] = {
        "now": NOON + timedelta(milliseconds=500), "schedule_id": 7, "next_due_at": next_due_at,
        "needs_plan": False, "last_due_at": None, "anchor_at": None,
        "one_off": False, "task": "t", "args": "[]", "kwargs": "{}", "headers": "", "queue": None,
        "exchange": None, "routing_key": None, "priority": None, "catch_up": "latest",
        "catch_up_window": None, "overlap": "allow",
        "spread": timedelta(0), "deadline_after": None, "expire_seconds": None, "rule": "",
        "replaced_at": LONG_AGO, "fields": fields,
    }  # fmt: skip
    return Due(**{**values, **columns})


def dues(runs: list[NewRun], state: State = State.SCHEDULED) -> list[datetime]:
    return [run.due_at for run in runs if run.state == state]


class TestInTime:
    @pytest.mark.parametrize("catch_up", ["latest", "all", "none"])
    def test_what_is_due_becomes_one_run_and_the_next_instant_is_planned(
        self, catch_up: str
    ) -> None:
        (only,), moved = decide(due(NOON, catch_up=catch_up), NONE_LEFT)
        assert (only.due_at, only.run_at, only.state, only.coalesced) == (
            NOON, NOON, State.SCHEDULED, 0,
        )  # fmt: skip
        assert moved == Moved(7, at(13), NOON, 1)

    def test_the_last_occurrence_of_a_rule_leaves_no_next(self) -> None:
        _, moved = decide(due(NOON, HOURLY._replace(expires=at(12, 30))), NONE_LEFT)
        assert moved.next_due_at is None

    def test_a_one_off_has_no_next(self) -> None:
        runs, moved = decide(due(NOON, one_off=True), NONE_LEFT)
        assert (dues(runs), moved.next_due_at) == ([NOON], None)

    def test_a_spread_moves_the_start_and_not_the_nominal_instant(self) -> None:
        (only,), _ = decide(due(NOON, spread=timedelta(minutes=5)), NONE_LEFT)
        assert only.due_at == NOON
        assert NOON < only.run_at < at(12, 5)
        assert only.run_at - NOON == planning.spread_offset(7, timedelta(minutes=5))

    def test_queue_priority_and_headers_are_the_schedules(self) -> None:
        plan = due(NOON, queue="mails", priority=0, headers='{"tenant": "a"}')
        (only,), _ = decide(plan, NONE_LEFT)
        assert (only.queue, only.priority) == ("mails", Priority.FRONT)
        assert only.options == '{"headers": {"tenant": "a"}}'

    @pytest.mark.parametrize("headers", ["", "{}"])
    def test_empty_headers_are_none(self, headers: str) -> None:
        (only,), _ = decide(due(NOON, headers=headers), NONE_LEFT)
        assert only.options == "{}"


class TestCatchUp:
    def test_latest_makes_one_run_for_all_that_was_missed(self) -> None:
        (only,), moved = decide(due(at(8)), NONE_LEFT)
        assert (only.due_at, only.coalesced) == (at(8), 4)
        assert moved == Moved(7, at(13), NOON, 1)

    def test_latest_counts_thirty_days_of_minutes(self) -> None:
        (only,), moved = decide(due(NOON - timedelta(days=30), MINUTELY), NONE_LEFT)
        assert only.coalesced == 30 * 24 * 60
        assert moved.next_due_at == at(12, 1)

    def test_latest_counts_an_interval_from_its_anchor(self) -> None:
        fields = RuleFields(every=90, period="seconds")
        (only,), moved = decide(due(at(11), fields, anchor_at=at(11)), NONE_LEFT)
        assert only.coalesced == 40
        assert moved == Moved(7, at(12, 1, 30), NOON, 1)

    def test_latest_counts_up_to_the_schedules_expiry(self) -> None:
        (only,), moved = decide(due(at(8), HOURLY._replace(expires=at(10))), NONE_LEFT)
        assert only.coalesced == 2
        assert moved == Moved(7, None, at(10), 1)

    def test_all_makes_a_run_of_each_and_starts_the_oldest(self) -> None:
        runs, moved = decide(due(at(8), catch_up="all"), NONE_LEFT)
        assert dues(runs) == [at(8)]
        assert dues(runs, State.HELD) == [at(9), at(10), at(11), NOON]
        assert moved == Moved(7, at(13), NOON, 5)

    def test_all_holds_everything_while_an_earlier_run_is_unfinished(self) -> None:
        runs, _ = decide(due(at(11), catch_up="all"), Unfinished(running=1, all=1))
        assert dues(runs, State.HELD) == [at(11), NOON]

    def test_all_goes_on_in_steps(self) -> None:
        start = NOON - timedelta(days=30)
        runs, moved = decide(due(start, MINUTELY, catch_up="all"), NONE_LEFT)
        assert len(runs) == CATCH_UP_STEP
        assert moved.last_due_at == start + timedelta(minutes=CATCH_UP_STEP - 1)
        assert moved.next_due_at == start + timedelta(minutes=CATCH_UP_STEP)

    def test_all_skips_what_is_before_its_window_in_one_row(self) -> None:
        window = timedelta(hours=2)
        plan = due(at(8), catch_up="all", catch_up_window=window)
        (only,), moved = decide(plan, NONE_LEFT)
        assert (only.due_at, only.state, only.coalesced) == (at(8), State.SKIPPED, 2)
        assert "before the catch-up window" in only.reason
        assert moved == Moved(7, at(11), at(10), 1)

    def test_all_skips_the_rest_when_a_thousand_wait(self) -> None:
        plan = due(at(8), catch_up="all")
        (only,), moved = decide(plan, Unfinished(held=CATCH_UP_MAX, all=CATCH_UP_MAX))
        assert (only.state, only.coalesced) == (State.SKIPPED, 4)
        assert moved.next_due_at == at(13)

    def test_none_skips_what_is_late_and_counts_it_on_one_row(self) -> None:
        (only,), moved = decide(due(at(8), catch_up="none"), NONE_LEFT)
        assert (only.due_at, only.state, only.coalesced) == (at(8), State.SKIPPED, 3)
        assert only.reason.startswith("missed: noticed 4:00:00")
        assert moved == Moved(7, NOON, at(11), 1)

    @pytest.mark.parametrize(
        ("window", "state"),
        [
            (None, State.SKIPPED),
            (timedelta(minutes=10), State.SCHEDULED),
            (timedelta(0), State.SKIPPED),
        ],
    )
    def test_none_lets_run_what_is_within_the_grace_time(
        self, window: timedelta | None, state: State
    ) -> None:
        plan = due(at(11, 55), RuleFields("55", "*", "*", "*", "*", "UTC"), catch_up="none",
                   catch_up_window=window)  # fmt: skip
        (only,), _ = decide(plan, NONE_LEFT)
        assert only.state == state

    def test_none_takes_half_a_second_for_in_time(self) -> None:
        runs, _ = decide(due(NOON, catch_up="none"), NONE_LEFT)
        assert dues(runs) == [NOON]

    def test_none_skips_a_one_off_that_is_late(self) -> None:
        clocked = RuleFields(clocked_time=at(8))
        (only,), _ = decide(due(at(8), clocked, catch_up="none", one_off=True), NONE_LEFT)
        assert only.state == State.SKIPPED

    def test_none_skips_what_is_late_though_it_was_edited_meanwhile(self) -> None:
        plan = due(at(8), catch_up="none", needs_plan=True, replaced_at=at(11))
        (only,), _ = decide(plan, NONE_LEFT)
        assert only.state == State.SKIPPED


class TestAnEditDuringAnOutage:
    """Occurrences before the edit came due by the old rule, which the plan still has."""

    def edited(self, first: datetime, fields: RuleFields = MINUTELY, **columns: Any) -> Due:
        """Return an hourly plan due since `first` that was given another rule at 11:30."""
        old = {"rule": HOURLY.serialised(), "replaced_at": at(11, 30)}
        return due(first, fields, needs_plan=True, **{**old, **columns})

    def test_latest_counts_what_the_old_rule_missed_until_then(self) -> None:
        (only,), moved = decide(self.edited(at(8)), NONE_LEFT)
        assert (only.due_at, only.coalesced) == (at(8), 3)
        assert moved == Moved(7, None, at(11), 1)

    def test_all_makes_a_run_of_each_until_then(self) -> None:
        runs, moved = decide(self.edited(at(8), catch_up="all"), NONE_LEFT)
        assert [run.due_at for run in runs] == [at(8), at(9), at(10), at(11)]
        assert moved == Moved(7, None, at(11), 4)

    def test_all_goes_on_with_the_old_rule_in_the_next_step(self) -> None:
        first = at(11, 30) - timedelta(minutes=300)
        plan = self.edited(first, HOURLY, catch_up="all", rule=MINUTELY.serialised())
        runs, moved = decide(plan, NONE_LEFT)
        assert len(runs) == CATCH_UP_STEP
        assert moved.next_due_at == first + timedelta(minutes=CATCH_UP_STEP)

    def test_none_counts_what_is_late(self) -> None:
        (only,), moved = decide(self.edited(at(8), catch_up="none"), NONE_LEFT)
        assert (only.state, only.coalesced) == (State.SKIPPED, 3)
        assert moved == Moved(7, None, at(11), 1)

    def test_a_window_that_begins_after_the_edit_leaves_nothing_to_run(self) -> None:
        window = timedelta(minutes=10)
        (only,), moved = decide(
            self.edited(at(8), catch_up="all", catch_up_window=window), NONE_LEFT
        )
        assert (only.state, only.coalesced) == (State.SKIPPED, 3)
        assert moved.next_due_at is None

    def test_an_interval_counts_from_its_old_anchor(self) -> None:
        old = RuleFields(every=90, period="minutes").serialised()
        (only,), _ = decide(self.edited(at(8), rule=old, anchor_at=at(8)), NONE_LEFT)
        assert only.coalesced == 2

    @pytest.mark.parametrize("rule", ["", "odd", "|" * 12, "61|*|*|*|*|UTC|||||||"])
    def test_a_rule_that_is_not_known_is_fired_for_its_instant_alone(self, rule: str) -> None:
        (only,), moved = decide(self.edited(at(8), rule=rule), NONE_LEFT)
        assert (only.state, only.coalesced) == (State.SCHEDULED, 0)
        assert moved == Moved(7, None, at(8), 1)

    def test_one_that_became_a_one_off_still_has_its_new_instant_before_it(self) -> None:
        once = RuleFields(clocked_time=at(18))
        (only,), moved = decide(self.edited(at(8), once, one_off=True), NONE_LEFT)
        assert (only.due_at, moved.done) == (at(8), False)

    def test_a_one_off_whose_rule_stayed_is_done(self) -> None:
        plan = self.edited(at(8), HOURLY, one_off=True)
        (only,), moved = decide(plan, NONE_LEFT)
        assert (only.coalesced, moved.done) == (0, True)


class TestOverlap:
    @pytest.mark.parametrize(
        ("overlap", "unfinished", "state", "reason"),
        [
            ("allow", Unfinished(running=1, all=1), State.SCHEDULED, ""),
            ("skip", Unfinished(), State.SCHEDULED, ""),
            ("skip", Unfinished(all=1), State.SKIPPED, "overlap: an earlier run"),
            ("skip", Unfinished(running=1, all=1), State.SKIPPED, "overlap: an earlier run"),
            ("queue", Unfinished(), State.SCHEDULED, ""),
            ("queue", Unfinished(running=1, all=1), State.HELD, ""),
            ("queue", Unfinished(running=1, held=1, all=2), State.SKIPPED, "overlap: one run wait"),
            ("replace", Unfinished(), State.SCHEDULED, ""),
            ("replace", Unfinished(all=1), State.SCHEDULED, ""),
            ("replace", Unfinished(running=1, all=1), State.HELD, ""),
        ],
    )
    def test_it_is_what_the_policy_says(
        self, overlap: str, unfinished: Unfinished, state: State, reason: str
    ) -> None:
        (only,), moved = decide(due(NOON, overlap=overlap), unfinished)
        assert only.state == state
        assert only.reason.startswith(reason)
        assert bool(only.reason) == bool(reason)
        assert moved.next_due_at == at(13)

    @pytest.mark.parametrize(
        ("overlap", "unfinished", "states"),
        [
            ("allow", NONE_LEFT, ["scheduled", "scheduled", "scheduled"]),
            ("skip", NONE_LEFT, ["scheduled", "skipped", "skipped"]),
            ("skip", Unfinished(all=1), ["skipped", "skipped", "skipped"]),
            ("queue", NONE_LEFT, ["scheduled", "held", "skipped"]),
            ("queue", Unfinished(running=1, all=1), ["held", "skipped", "skipped"]),
            ("queue", Unfinished(held=1, all=2), ["skipped", "skipped", "skipped"]),
            ("replace", NONE_LEFT, ["skipped", "skipped", "scheduled"]),
            ("replace", Unfinished(all=1), ["skipped", "skipped", "scheduled"]),
            ("replace", Unfinished(running=1, all=1), ["skipped", "skipped", "held"]),
        ],
    )
    def test_runs_that_are_made_together_overlap_too(
        self, overlap: str, unfinished: Unfinished, states: list[str]
    ) -> None:
        hours = timedelta(hours=3)
        plan = due(at(10), catch_up="none", catch_up_window=hours, overlap=overlap)
        runs, moved = decide(plan, unfinished)
        assert [run.due_at for run in runs] == [at(10), at(11), at(12)]
        assert [run.state for run in runs] == states
        assert all(run.reason for run in runs if run.state == State.SKIPPED)
        assert (moved.next_due_at, moved.last_due_at) == (at(13), at(12))

    def test_what_catch_up_makes_up_for_is_not_skipped_for_overlapping_itself(self) -> None:
        runs, _ = decide(due(at(10), catch_up="all", overlap="skip"), NONE_LEFT)
        assert (dues(runs), dues(runs, State.HELD)) == ([at(10)], [at(11), NOON])

    def test_all_keeps_the_order_when_the_next_one_is_due_in_time(self) -> None:
        (only,), _ = decide(due(NOON, catch_up="all"), Unfinished(held=3, running=1, all=4))
        assert only.state == State.HELD


class TestEdits:
    def test_an_instant_replaced_before_it_came_due_becomes_nothing(self) -> None:
        plan = due(NOON, needs_plan=True, replaced_at=at(11))
        assert decide(plan, NONE_LEFT) == ([], Moved(7, None, None, 0))

    def test_an_instant_that_an_edit_replaced_is_not_brought_back_by_a_second_edit(self) -> None:
        plan = due(at(11, 30), needs_plan=True, replaced_at=at(11))
        assert decide(plan, NONE_LEFT) == ([], Moved(7, None, None, 0))

    def test_one_that_was_due_before_the_edit_fires(self) -> None:
        plan = due(at(11), needs_plan=True, replaced_at=at(11, 30))
        runs, moved = decide(plan, NONE_LEFT)
        assert (dues(runs), moved) == ([at(11)], Moved(7, None, at(11), 1))

    def test_one_that_was_due_at_the_very_moment_of_the_edit_fires(self) -> None:
        runs, _ = decide(due(at(11), needs_plan=True, replaced_at=at(11)), NONE_LEFT)
        assert dues(runs) == [at(11)]


class TestQuarantine:
    @pytest.mark.parametrize(
        "args", ["[1,", "{}", '[{"__type__": "decimal", "__value__": "x"}]', "[" * 200_000]
    )
    def test_arguments_that_cannot_be_read_leave_a_skipped_row_and_an_error(
        self, args: str
    ) -> None:
        (only,), moved = decide(due(NOON, args=args), NONE_LEFT)
        assert only.state == State.SKIPPED
        assert only.reason == moved.error != ""
        assert moved.next_due_at is None

    def test_a_rule_that_broke_leaves_a_skipped_row_and_an_error(self) -> None:
        runs, moved = decide(due(NOON, HOURLY._replace(minute="nonsense")), NONE_LEFT)
        assert dues(runs, State.SKIPPED) == [NOON]
        assert (moved.next_due_at, moved.last_due_at) == (None, NOON)
        assert "nonsense" in moved.error

    @pytest.mark.parametrize(
        "columns",
        [
            {"spread": timedelta.max},
            {"headers": '{"a": {"__type__": "decimal", "__value__": "x"}}'},
            {"headers": "nonsense"},
            {"headers": "5"},
        ],
    )
    def test_whatever_one_schedule_holds_it_must_not_stop_the_others(
        self, columns: dict[str, Any]
    ) -> None:
        (only,), moved = decide(due(NOON, **columns), NONE_LEFT)
        assert only.state == State.SKIPPED
        assert only.reason == moved.error != ""

    def test_a_queue_that_does_not_exist_does_not_stop_the_others(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(current_app.amqp.queues, "create_missing", False)
        monkeypatch.setattr(current_app.amqp, "router", current_app.amqp.Router())
        (only,), moved = decide(due(NOON, queue="no-such-queue"), NONE_LEFT)
        assert only.state == State.SKIPPED
        assert "no-such-queue" in moved.error


def due_schedule(name: str = "nightly", *, ago: int = 5, **columns: Any) -> PeriodicTask:
    """Write a schedule that has been due for some seconds, and is next due in the far future."""
    row = schedule(name, **columns)
    set_plan(row, clock.now() - timedelta(seconds=ago))
    return row


@pytest.mark.django_db
class TestFiring:
    def test_the_row_says_what_the_schedule_says(self) -> None:
        row = due_schedule(
            task="some.task", args="[1]", kwargs='{"a": 2}', queue="q", priority=3,
            expire_seconds=60, policy={"max_attempts": 5, "deadline_after": timedelta(minutes=9)},
        )  # fmt: skip
        planned = plan_of(row).next_due_at
        assert planned is not None
        firing.fire_due(LONG_AGO)
        (made,) = runs_of(row)
        assert (made.origin, made.schedule_name, made.task) == (
            Origin.SCHEDULE, "nightly", "some.task",
        )  # fmt: skip
        assert (made.args, made.kwargs, made.queue, made.priority) == ("[1]", '{"a": 2}', "q", 3)
        assert (made.due_at, made.run_at) == (planned, planned)
        assert made.expires_at == planned + timedelta(seconds=60)
        assert made.deadline == planned + timedelta(minutes=9)
        assert (made.state, made.attempt, made.max_attempts) == (State.SCHEDULED, 1, 5)

    def test_empty_arguments_are_none_at_all(self) -> None:
        row = due_schedule(args="", kwargs="")
        firing.fire_due(LONG_AGO)
        (made,) = runs_of(row)
        assert (made.args, made.kwargs) == ("[]", "{}")

    def test_the_plan_moves_on_with_it(self) -> None:
        row = due_schedule()
        planned = plan_of(row).next_due_at
        firing.fire_due(LONG_AGO)
        after = plan_of(row)
        assert after.next_due_at is not None
        assert after.next_due_at > clock.now()
        assert (after.last_due_at, after.fired_count, after.error) == (planned, 1, "")

    def test_with_room_in_its_lane_it_is_queued_at_once(self) -> None:
        row = due_schedule(queue="q", headers='{"a": 1}')
        (hint,) = firing.fire_due(LONG_AGO, room={Lane("q", Priority.MEDIUM): 3}).hints
        (made,) = runs_of(row)
        assert hint == (str(made.id), 1, row.task, "q", Priority.MEDIUM, made.options)
        assert made.state == State.QUEUED
        assert made.queued_at is not None

    def test_no_more_are_queued_than_there_is_room_for(self) -> None:
        rows = [due_schedule(name=f"n{n}") for n in range(3)]
        fired = firing.fire_due(LONG_AGO, room={Lane("celery", Priority.MEDIUM): 2})
        assert len(fired.hints) == 2
        states = sorted(run.state for row in rows for run in runs_of(row))
        assert states == [State.QUEUED, State.QUEUED, State.SCHEDULED]

    @pytest.mark.parametrize(
        "columns",
        [
            pytest.param({"queue": "another"}, id="another lane"),
            pytest.param({"policy": {"spread": timedelta(hours=9)}}, id="a later start"),
            pytest.param({"expire_seconds": 0}, id="expired"),
        ],
    )
    def test_what_may_not_start_is_not_queued_at_once(self, columns: dict[str, Any]) -> None:
        row = due_schedule(**columns)
        assert not firing.fire_due(LONG_AGO, room={Lane("celery", Priority.MEDIUM): 9}).hints
        assert [run.state for run in runs_of(row)] == [State.SCHEDULED]

    def test_periodic_task_is_not_written_by_it(self) -> None:
        row = due_schedule(one_off=True)
        with transaction.atomic():
            firing.fire_due(LONG_AGO)
            row.refresh_from_db()
            assert (row.enabled, row.last_run_at, row.total_run_count) == (True, None, 0)

    def test_an_occurrence_that_has_a_row_gets_no_second_one(self) -> None:
        row = due_schedule()
        planned = plan_of(row).next_due_at
        firing.fire_due(LONG_AGO)
        Plan.objects.filter(schedule=row).update(next_due_at=planned)
        firing.fire_due(LONG_AGO)
        assert len(runs_of(row)) == 1
        assert plan_of(row).next_due_at != planned

    def test_what_is_not_due_yet_stays(self) -> None:
        row = schedule()
        set_plan(row, clock.now() + timedelta(minutes=1))
        assert firing.fire_due(LONG_AGO).plans == 0
        assert runs_of(row) == []

    def test_an_edit_before_the_instant_discards_it(self) -> None:
        row = schedule()
        now = clock.now()
        set_plan(row, now, needs_plan=True, plan_from=now - timedelta(seconds=1))
        firing.fire_due(LONG_AGO)
        assert runs_of(row) == []
        after = plan_of(row)
        assert (after.next_due_at, after.needs_plan) == (None, True)

    def test_one_bad_schedule_does_not_stop_the_batch(self) -> None:
        rows = [due_schedule(f"s{n}") for n in range(4)]
        PeriodicTask.objects.filter(pk=rows[1].pk).update(args="[1,")
        firing.fire_due(LONG_AGO)
        states = [made.state for row in rows for made in runs_of(row)]
        assert states == [State.SCHEDULED, State.SKIPPED, State.SCHEDULED, State.SCHEDULED]
        assert "args are not JSON" in plan_of(rows[1]).error

    def test_a_policy_out_of_all_bounds_does_not_stop_the_batch(self) -> None:
        due_schedule("absurd", policy={"deadline_after": timedelta(days=999_999_999)})
        other = due_schedule("other")
        firing.fire_due(LONG_AGO)
        assert len(runs_of(other)) == 1

    def test_an_expiry_counts_from_when_it_may_start(self) -> None:
        row = due_schedule(expire_seconds=60, policy={"spread": timedelta(minutes=9)})
        firing.fire_due(LONG_AGO)
        (made,) = runs_of(row)
        assert made.expires_at == made.run_at + timedelta(seconds=60)

    def test_the_run_for_all_that_was_missed_expires_by_the_latest(self) -> None:
        row = due_schedule(ago=7200, crontab=crontab(), expire_seconds=600)
        firing.fire_due(LONG_AGO)
        (made,) = runs_of(row)
        assert made.expires_at is not None
        assert made.expires_at > clock.now()

    def test_replace_cancels_what_waits_and_asks_what_runs_to_end(self) -> None:
        row = due_schedule(policy={"overlap": "replace"})
        waiting = run(schedule_id=row.pk, due_at=NOON)
        running = run(State.RUNNING, schedule_id=row.pk, due_at=NOON)
        firing.fire_due(LONG_AGO)
        waiting.refresh_from_db()
        running.refresh_from_db()
        assert waiting.state == State.CANCELLED
        assert f"schedule {row.pk}: replaced" in waiting.reason
        assert running.state == State.RUNNING
        assert running.cancel_requested_by.startswith(f"schedule {row.pk}: replaced")
        assert [made.state for made in runs_of(row)][-1] == State.HELD


@pytest.mark.django_db
@pytest.mark.parametrize(
    "columns", [{"args": "[3, 4]"}, {"priority": 0}, {"queue": "mails"}, {"expire_seconds": 99_999}]
)
@pytest.mark.parametrize("catch_up", ["latest", "all"])
def test_an_edit_of_the_call_during_an_outage_keeps_what_was_missed(
    columns: dict[str, Any], catch_up: str
) -> None:
    row = due_schedule(ago=3630, crontab=crontab(), policy={"catch_up": catch_up})
    PeriodicTask.objects.filter(pk=row.pk).update(**columns)
    for _ in range(3):
        firing.fire_due(LONG_AGO)
        planning.plan_changed()
    made = runs_of(row)
    assert len(made) + sum(one.coalesced for one in made) >= 60


@pytest.mark.django_db(transaction=True)
def test_replace_holds_the_new_run_while_somebody_holds_the_old_ones_row() -> None:
    row = due_schedule(policy={"overlap": "replace"})
    waiting = run(schedule_id=row.pk, due_at=NOON)
    with second_connection() as other:
        other.execute("SELECT 1 FROM scheduling_run WHERE id = %s FOR UPDATE", [waiting.pk])
        firing.fire_due(LONG_AGO)
    states = {made.state for made in runs_of(row)}
    assert states == {State.SCHEDULED, State.HELD}


@pytest.mark.django_db
class TestLastRuns:
    def test_they_are_copied_to_where_the_ecosystem_looks(self) -> None:
        row = due_schedule()
        planned = plan_of(row).next_due_at
        fired = firing.fire_due(LONG_AGO)
        last_runs.copy(fired.schedule_ids)
        row.refresh_from_db()
        assert (row.last_run_at, row.total_run_count, row.enabled) == (planned, 1, True)
        assert not plan_of(row).needs_plan

    def test_a_one_off_that_has_fired_is_disabled(self) -> None:
        row = due_schedule(one_off=True)
        last_runs.copy(firing.fire_due(LONG_AGO).one_off_ids)
        row.refresh_from_db()
        assert not row.enabled
        planning.plan_changed()
        assert plan_of(row).next_due_at is None

    def test_a_one_off_in_quarantine_keeps_its_error(self) -> None:
        row = due_schedule(one_off=True)
        PeriodicTask.objects.filter(pk=row.pk).update(args="[1,")
        last_runs.copy(firing.fire_due(LONG_AGO).one_off_ids)
        planning.plan_changed()
        assert "args are not JSON" in plan_of(row).error

    def test_a_one_off_does_not_fire_again_after_a_crash_and_an_edit(self) -> None:
        row = due_schedule(one_off=True)
        firing.fire_due(LONG_AGO)  # and beat is killed here, before it copies
        row.crontab.hour = "1"
        row.crontab.save()
        planning.plan_changed()
        assert plan_of(row).next_due_at is None


@pytest.mark.django_db
def test_a_clocked_schedule_in_the_past_fires_once() -> None:
    rule = ClockedSchedule.objects.create(clocked_time=clock.now() - timedelta(hours=1))
    row = schedule(clocked=rule, one_off=True)
    for _ in range(3):
        planning.plan_changed()
        last_runs.copy(firing.fire_due(LONG_AGO).one_off_ids)
    assert [made.due_at for made in runs_of(row)] == [rule.clocked_time]


@pytest.mark.django_db(transaction=True)
class TestManyBeats:
    def test_two_beats_make_one_row_for_each_of_a_thousand_occurrences(self) -> None:
        rule = crontab("0", "0", month_of_year="1", day_of_month="1")
        PeriodicTask.objects.bulk_create(
            [PeriodicTask(name=f"many {n}", task="t", crontab=rule) for n in range(1000)]
        )
        instant = clock.now() - timedelta(seconds=1)
        Plan.objects.update(next_due_at=instant, needs_plan=False, plan_from=LONG_AGO)

        def fire_all() -> int:
            return sum(iter(lambda: firing.fire_due(LONG_AGO, limit=50).plans, 0))

        beats = [in_thread(fire_all) for _ in range(2)]
        fired = [beat.result(30) for beat in beats]
        assert sum(fired) == Plan.objects.count()
        assert Run.objects.filter(task="t").count() == 1000
        assert (
            Run.objects.filter(task="t").values("schedule_id", "due_at").distinct().count() == 1000
        )
        assert not Plan.objects.filter(next_due_at__lte=instant).exists()
        assert set(Plan.objects.values_list("fired_count", flat=True)) == {1}

    def test_a_plan_that_another_beat_holds_is_skipped_and_not_waited_for(self) -> None:
        held, free = due_schedule("held"), due_schedule("free")
        with second_connection() as other:
            other.execute(
                "SELECT 1 FROM scheduling_plan WHERE schedule_id = %s FOR NO KEY UPDATE", [held.pk]
            )
            in_thread(lambda: firing.fire_due(LONG_AGO)).result(5)
            assert (len(runs_of(held)), len(runs_of(free))) == (0, 1)

    def test_a_crash_before_the_commit_leaves_everything_due(self) -> None:
        row = due_schedule()
        with second_connection():

            def crash() -> None:
                with transaction.atomic():
                    firing.fire_due(LONG_AGO)
                    connection.close()  # as when the process is killed

            in_thread(crash).exception(5)
        assert runs_of(row) == []
        firing.fire_due(LONG_AGO)
        assert len(runs_of(row)) == 1

    def test_a_user_who_holds_a_schedule_delays_neither_its_run_nor_beat(self) -> None:
        row = due_schedule(one_off=True)
        with second_connection() as editor:
            editor.execute(
                "SELECT 1 FROM django_celery_beat_periodictask WHERE id = %s FOR NO KEY UPDATE",
                [row.pk],
            )

            def tick() -> None:
                last_runs.copy(firing.fire_due(LONG_AGO).one_off_ids)

            in_thread(tick).result(5)
            assert len(runs_of(row)) == 1

    def test_an_edit_just_before_the_lock_gives_no_task_the_queue_of_another(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        row, other_row = due_schedule(), due_schedule(name="other")
        # As if the user's edit fell between the start of the statement and its locks.
        paused = "next_due_at > %(low)s AND pg_advisory_xact_lock_shared(1) IS NOT NULL"
        statement = due_plans.LOCK_DUE.replace("next_due_at > %(low)s", paused)
        monkeypatch.setattr(due_plans, "LOCK_DUE", statement)
        with second_connection() as other:
            other.execute("SELECT pg_advisory_xact_lock(1)")
            room = {Lane("celery", Priority.MEDIUM): 1}
            firing_it = in_thread(lambda: firing.fire_due(LONG_AGO, room=room))
            wait_for(is_blocked)
            PeriodicTask.objects.filter(pk=row.pk).update(task=WRITE, queue="other")
            other.rollback()
            fired = firing_it.result(5)
        (made,) = runs_of(row)
        assert (made.task, made.queue, fired.plans) == (WRITE, "other", 2)
        (unedited,) = runs_of(other_row)
        assert [hint.id for hint in fired.hints] == [str(unedited.pk)]  # the room is its now

    def test_a_frozen_beat_lets_go_of_its_rows(self) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            firing.fire_due(LONG_AGO)
            cursor.execute("SHOW idle_in_transaction_session_timeout")
            assert cursor.fetchone()[0] == "10s"


@pytest.mark.django_db
def test_deleting_a_policy_returns_to_the_defaults() -> None:
    row = due_schedule(policy={"overlap": "skip"})
    run(State.RUNNING, schedule_id=row.pk, due_at=NOON)
    Policy.objects.filter(schedule=row).delete()
    firing.fire_due(LONG_AGO)
    assert [made.state for made in runs_of(row)][-1] == State.SCHEDULED


@pytest.mark.django_db
def test_an_interval_schedule_that_was_down_keeps_its_pattern() -> None:
    row = schedule(interval=interval(10, "minutes"))
    anchor = clock.now() - timedelta(hours=3, minutes=4)
    set_plan(row, anchor + timedelta(minutes=10), anchor_at=anchor)
    firing.fire_due(LONG_AGO)
    (made,) = runs_of(row)
    after = plan_of(row).next_due_at
    assert made.coalesced == 17
    assert after == anchor + timedelta(minutes=190)


def test_the_settings_name_no_other_scheduler() -> None:
    assert django_settings.CELERY_BEAT_SCHEDULER == "scheduling.beat:Scheduler"


@pytest.mark.django_db
class TestValuesThatPythonCannotHold:
    """Raw SQL can write them; they must not stop the batch that they are in."""

    def test_infinite_and_absurd_columns_stop_nobody(self) -> None:
        absurd, other = due_schedule("absurd", policy={"overlap": "skip"}), due_schedule("other")
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE django_celery_beat_periodictask SET expires = 'infinity',"
                " start_time = '-infinity' WHERE id = %s",
                [absurd.pk],
            )
            cursor.execute(
                "UPDATE scheduling_policy SET catch_up_window = interval '2000000000 days',"
                " paused_until = '30000-01-01', paused_at = now() WHERE schedule_id = %s",
                [absurd.pk],
            )
        firing.fire_due(LONG_AGO)
        planning.plan_changed()
        assert len(runs_of(other)) == 1

    @pytest.mark.parametrize(
        "value",
        [
            "spread = interval '-2000000000 days'",
            "deadline_after = interval '-2000000000 days'",
            "catch_up_window = interval '-2000000000 days'",
            "paused_at = '-infinity'",
            "paused_at = '4000-01-01 BC'",
        ],
    )
    def test_what_lies_before_all_time_stops_nobody(self, value: str) -> None:
        absurd, other = due_schedule("absurd", policy={}), due_schedule("other")
        with connection.cursor() as cursor:
            cursor.execute(
                f"UPDATE scheduling_policy SET {value} WHERE schedule_id = %s",  # noqa: S608
                [absurd.pk],
            )
        firing.fire_due(LONG_AGO)
        planning.plan_changed()
        assert len(runs_of(other)) == 1

    def test_a_spread_beyond_the_last_year_leaves_a_run_without_an_expiry(self) -> None:
        row = due_schedule(
            policy={"spread": timedelta(days=36_500)},
            expires=datetime(9999, 12, 31, tzinfo=UTC),
        )
        firing.fire_due(LONG_AGO)
        (made,) = runs_of(row)
        assert (made.state, made.expires_at) == (State.SCHEDULED, None)

    def test_more_missed_instants_than_the_column_counts(self) -> None:
        ago = timedelta(days=70 * 365)
        seconds = interval(1, "seconds")
        row = due_schedule(ago=int(ago.total_seconds()), crontab=None, interval=seconds)
        Plan.objects.filter(pk=row.pk).update(anchor_at=clock.now() - ago)
        firing.fire_due(clock.now() - 2 * ago)
        assert runs_of(row)[0].coalesced == 2**31 - 1


@pytest.mark.django_db
def test_what_was_missed_before_an_edit_is_counted_by_the_rule_of_then() -> None:
    now = clock.now()
    row = schedule(crontab=crontab(str((now.minute + 30) % 60)))  # hourly, and not just now
    planning.plan_changed()
    begun = now - timedelta(hours=5)
    Plan.objects.filter(schedule=row).update(next_due_at=begun, plan_from=LONG_AGO)
    CrontabSchedule.objects.filter(pk=row.crontab_id).update(minute="*")
    first_edit = plan_of(row).replaced_at
    CrontabSchedule.objects.filter(pk=row.crontab_id).update(minute="30")
    assert plan_of(row).replaced_at == first_edit
    firing.fire_due(LONG_AGO)
    (made,) = runs_of(row)
    assert (made.due_at, made.coalesced) == (begun, 5)
    planning.plan_changed()
    following = plan_of(row).next_due_at
    assert following is not None
    assert following.minute == 30
    PeriodicTask.objects.filter(pk=row.pk).update(enabled=False)
    assert plan_of(row).replaced_at != first_edit


@pytest.mark.django_db
def test_an_overdue_schedule_that_becomes_a_one_off_fires_then_too() -> None:
    row = schedule(crontab=crontab("0"))
    planning.plan_changed()
    Plan.objects.filter(schedule=row).update(
        next_due_at=clock.now() - timedelta(hours=1), plan_from=LONG_AGO
    )
    later = ClockedSchedule.objects.create(clocked_time=clock.now() + timedelta(hours=1))
    PeriodicTask.objects.filter(pk=row.pk).update(crontab=None, clocked=later, one_off=True)
    firing.fire_due(LONG_AGO)
    planning.plan_changed()
    assert len(runs_of(row)) == 1
    assert plan_of(row).next_due_at == later.clocked_time


@pytest.mark.django_db
def test_what_a_pause_replaced_is_not_fired_by_the_resuming_that_no_beat_saw_come() -> None:
    row = schedule(policy={})
    planning.plan_changed()
    now = clock.now()
    Policy.objects.update(paused_at=now - timedelta(seconds=10))
    # As it would stand if the pause were ten seconds old, and beat had been away since.
    Plan.objects.update(
        next_due_at=now - timedelta(seconds=5), replaced_at=now - timedelta(seconds=10)
    )
    Policy.objects.update(paused_at=None)
    firing.fire_due(LONG_AGO)
    assert runs_of(row) == []
    planning.plan_changed()
    following = plan_of(row).next_due_at
    assert following is not None
    assert following > now
