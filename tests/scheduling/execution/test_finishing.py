"""Each way out of a state except a claim; no other state moves."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from celery import current_app, shared_task, states
from celery.exceptions import WorkerLostError
from django.db import DataError, connection, transaction
from django_celery_results.models import TaskResult
from pytest_django import Settings

from scheduling import clock
from scheduling.beat.lost_leases import recover_lost_leases
from scheduling.errors import SchedulingError
from scheduling.execution import finishing
from scheduling.execution.cancelling import cancel, cancel_waiting_of
from scheduling.execution.closing import expire_waiting
from scheduling.execution.finishing import finish
from scheduling.execution.postponing import hand_back_unknown
from scheduling.execution.releasing import FIRST_ID, LAST_ID, RELEASE_HELD, release_held
from scheduling.ids import uuid7
from scheduling.models import FINAL, WAITING, Run, State
from scheduling.postgres.sql import clean
from scheduling.runs.outcomes import NextCall, Outcome, cancelled, failed_attempt
from scheduling.runs.stored_results import StoredResult
from tests.scheduling.ledger import (
    ADD,
    NOON,
    in_thread,
    is_blocked,
    run,
    second_connection,
)
from tests.waiting import wait_for


@shared_task(autoretry_for=(OSError,), max_retries=None)
def for_ever() -> None: ...


SUCCEEDED = Outcome(State.SUCCEEDED)
AGAIN = Outcome(State.SCHEDULED, "down", "down", failed=True)


def result(**columns: Any) -> StoredResult:
    values: dict[str, Any] = {
        "status": "SUCCESS", "result": "3", "traceback": None, "meta": "{}",
        "content_type": "application/json", "content_encoding": "utf-8", "task_name": ADD,
    }  # fmt: skip
    return StoredResult(**{**values, **columns})


def fresh(made: Run) -> Run:
    return Run.objects.get(pk=made.pk)


def stored_state(made: Run) -> str:
    return str(current_app.AsyncResult(str(made.pk)).state)


def snapshot(made: Run) -> dict[str, Any]:
    return dict(Run.objects.values().get(pk=made.pk))


@pytest.mark.django_db
class TestFinish:
    @pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
    def test_a_running_run_ends(self, state: State) -> None:
        made = run(State.RUNNING, cancel_requested_by="ann")
        assert finish(made.pk, 1, Outcome(state, "why"))
        after = fresh(made)
        assert (after.state, after.reason, after.attempt) == (state, "why", 1)
        assert after.finished_at is not None
        assert after.lease_expires_at is None
        assert after.worker == "w1", "it stays, to say who ran it"

    def test_a_failed_attempt_is_kept_with_its_error(self) -> None:
        made = run(State.RUNNING)
        finish(made.pk, 1, Outcome(State.FAILED, "r", "ValueError: x", "trace", failed=True))
        (error,) = fresh(made).errors
        assert (error["attempt"], error["error"], error["traceback"], error["worker"]) == (
            1, "ValueError: x", "trace", "w1",
        )  # fmt: skip
        assert datetime.fromisoformat(error["started_at"]) <= datetime.fromisoformat(
            error["ended_at"]
        )

    def test_of_very_many_the_first_and_the_last_are_kept(self) -> None:
        before = [{"attempt": n} for n in range(1, 101)]
        made = run(State.RUNNING, attempt=101, errors=before)
        finish(made.pk, 101, Outcome(State.SCHEDULED, "again", error="again", failed=True))
        kept = [error["attempt"] for error in fresh(made).errors]
        assert kept == [*range(1, 11), *range(12, 102)]

    def test_another_attempt_waits_with_the_next_number(self) -> None:
        made = run(State.RUNNING, priority=6, queued_at=clock.now())
        assert finish(made.pk, 1, AGAIN)
        after = fresh(made)
        assert (after.state, after.attempt, after.failures, after.priority) == (
            State.SCHEDULED, 2, 1, 9,
        )  # fmt: skip
        assert (after.worker, after.queued_at, after.started_at, after.lease_expires_at) == (
            "", None, None, None,
        )  # fmt: skip
        assert after.finished_at is None

    def test_the_lowest_priority_stays(self) -> None:
        made = run(State.RUNNING, priority=9)
        finish(made.pk, 1, AGAIN)
        assert fresh(made).priority == 9

    def test_a_hand_back_counts_no_failure_and_keeps_its_priority(self) -> None:
        made = run(State.RUNNING)
        finish(
            made.pk,
            1,
            Outcome(State.SCHEDULED, "shutdown", call=NextCall(delay=timedelta(minutes=2))),
        )
        after = fresh(made)
        assert (after.attempt, after.failures, after.priority, after.errors) == (2, 0, 6, [])
        assert timedelta(seconds=115) < after.run_at - clock.now() <= timedelta(minutes=2)

    def test_the_next_attempt_may_have_a_time_and_a_call_of_its_own(self) -> None:
        made = run(State.RUNNING)
        finish(
            made.pk, 1, Outcome(State.SCHEDULED, call=NextCall("t", "[9]", '{"a": 1}', run_at=NOON))
        )
        after = fresh(made)
        assert (after.run_at, after.task, after.args, after.kwargs) == (
            NOON, "t", "[9]", '{"a": 1}',
        )  # fmt: skip

    @pytest.mark.parametrize("state", [state for state in State if state != State.RUNNING])
    @pytest.mark.parametrize("outcome", [SUCCEEDED, AGAIN])
    def test_no_other_state_moves(self, state: State, outcome: Outcome) -> None:
        made = run(state)
        before = snapshot(made)
        assert not finish(made.pk, 1, Outcome(**{**vars(outcome), "result": result()}))
        assert snapshot(made) == before
        assert not TaskResult.objects.exists()

    @pytest.mark.parametrize("attempt", [1, 3])
    def test_whoever_holds_another_attempt_can_record_nothing(self, attempt: int) -> None:
        made = run(State.RUNNING, attempt=2)
        before = snapshot(made)
        assert not finish(made.pk, attempt, Outcome(State.SUCCEEDED, result=result()))
        assert snapshot(made) == before
        assert not TaskResult.objects.exists()

    def test_twice_is_once(self) -> None:
        made = run(State.RUNNING)
        assert finish(made.pk, 1, AGAIN)
        before = snapshot(made)
        assert not finish(made.pk, 1, AGAIN)
        assert snapshot(made) == before

    def test_a_run_that_does_not_exist_is_a_lost_fence(self) -> None:
        assert not finish(uuid7(), 1, SUCCEEDED)

    def test_other_runs_do_not_move(self) -> None:
        made, other = run(State.RUNNING), run(State.RUNNING)
        before = snapshot(other)
        finish(made.pk, 1, SUCCEEDED)
        assert snapshot(other) == before


@pytest.mark.django_db
class TestItsResult:
    def test_it_is_written_with_the_transition(self) -> None:
        made = run(State.RUNNING)
        finish(made.pk, 1, Outcome(State.SUCCEEDED, result=result(task_args='"(1, 2)"')))
        row = TaskResult.objects.get(task_id=str(made.pk))
        assert (row.status, row.result, row.task_name, row.task_args) == (
            "SUCCESS", "3", ADD, '"(1, 2)"',
        )  # fmt: skip
        assert current_app.AsyncResult(str(made.pk)).get(timeout=1) == 3

    def test_a_later_attempts_result_replaces_an_earlier_ones(self) -> None:
        made = run(State.RUNNING)
        finish(made.pk, 1, Outcome(State.SCHEDULED, result=result(status="RETRY", result="null")))
        created = TaskResult.objects.values("date_created").get()["date_created"]
        Run.objects.filter(pk=made.pk).update(state=State.RUNNING)
        finish(made.pk, 2, Outcome(State.SUCCEEDED, result=result()))
        row = TaskResult.objects.values("status", "date_created").get()
        assert row == {"status": "SUCCESS", "date_created": created}

    def test_a_result_that_cannot_be_written_leaves_the_run_unmoved(self) -> None:
        made = run(State.RUNNING)
        before = snapshot(made)
        with pytest.raises(DataError), transaction.atomic():
            finish(made.pk, 1, Outcome(State.SUCCEEDED, result=result(content_type="x" * 999)))
        assert snapshot(made) == before
        assert not TaskResult.objects.exists()

    @pytest.mark.parametrize("text", ["a\0b", "lone \ud800 surrogate", "\0", "☃ 🎄"])
    def test_no_text_of_an_error_can_stop_it(self, text: str) -> None:
        made = run(State.RUNNING)
        stored = result(result=text, traceback=text, task_args=text, meta=text)
        assert finish(made.pk, 1, Outcome(State.FAILED, text, text, text, True, result=stored))
        after = fresh(made)
        assert after.reason == after.errors[0]["error"] == clean(text)
        assert TaskResult.objects.get().traceback == clean(text)

    def test_a_traceback_keeps_its_beginning_and_its_end(self) -> None:
        made = run(State.RUNNING)
        finish(made.pk, 1, Outcome(State.FAILED, "r", "e", f"Its place{'x' * 50_000}the end"))
        traceback = fresh(made).errors[0]["traceback"]
        assert len(traceback) < finishing.TRACEBACK_MAX + 100
        assert traceback.startswith("Its place")
        assert "x [... 30,016 characters ...] x" in traceback
        assert traceback.endswith("the end")


def test_clean_keeps_what_postgres_can_hold() -> None:
    assert clean("Zürich 🎄\n") == "Zürich 🎄\n"
    assert clean("\0\ud800") == "\\x00\\ud800"


@pytest.mark.django_db
class TestHeldRuns:
    def test_the_end_of_a_run_releases_the_oldest_that_waited_for_it(self) -> None:
        running = run(State.RUNNING, schedule_id=7)
        held = [
            run(State.HELD, schedule_id=7, due_at=NOON + timedelta(hours=hour))
            for hour in (2, 1, 3)
        ]
        other = run(State.HELD, schedule_id=8)
        finish(running.pk, 1, SUCCEEDED)
        assert [fresh(one).state for one in (*held, other)] == [
            State.HELD, State.SCHEDULED, State.HELD, State.HELD,
        ]  # fmt: skip

    def test_another_attempt_releases_nothing(self) -> None:
        running, held = run(State.RUNNING, schedule_id=7), run(State.HELD, schedule_id=7)
        finish(running.pk, 1, AGAIN)
        assert fresh(held).state == State.HELD

    @pytest.mark.parametrize("state", [State.SCHEDULED, State.QUEUED, State.RUNNING])
    def test_nothing_is_released_while_another_is_unfinished(self, state: State) -> None:
        running, held = run(State.RUNNING, schedule_id=7), run(State.HELD, schedule_id=7)
        run(state, schedule_id=7)
        finish(running.pk, 1, SUCCEEDED)
        assert release_held() == 0
        assert fresh(held).state == State.HELD

    def test_cancelling_what_it_waits_for_releases_it_too(self) -> None:
        waiting, held = run(schedule_id=7), run(State.HELD, schedule_id=7)
        cancel(waiting.pk, by="ann")
        assert fresh(held).state == State.SCHEDULED

    def test_cancelling_everything_releases_nothing(self) -> None:
        made = [run(schedule_id=7), run(State.HELD, schedule_id=7), run(State.HELD, schedule_id=7)]
        assert cancel_waiting_of(7, reason="because") == 3
        assert {fresh(one).state for one in made} == {State.CANCELLED}

    def test_an_ad_hoc_run_that_ends_releases_nothing(self) -> None:
        held = run(State.HELD, schedule_id=None)
        finish(run(State.RUNNING).pk, 1, SUCCEEDED)
        assert fresh(held).state == State.HELD

    def test_the_net_finds_one_for_each_schedule(self) -> None:
        for key in (7, 8):
            for hour in (1, 2):
                run(State.HELD, schedule_id=key, due_at=NOON + timedelta(hours=hour))
        run(State.HELD, schedule_id=9)
        run(State.RUNNING, schedule_id=9)
        assert release_held() == 2
        assert set(
            Run.objects.filter(state=State.SCHEDULED).values_list("schedule_id", "due_at")
        ) == {(key, NOON + timedelta(hours=1)) for key in (7, 8)}
        assert release_held() == 0

    @pytest.mark.usefixtures("bare_runs")
    def test_the_net_reads_a_few_rows_of_each_schedule_and_not_the_backlog(self) -> None:
        for key in range(1, 6):
            minutes = range(1000)
            Run.objects.bulk_create(
                Run(
                    task="t", queue="celery", origin="schedule", schedule_id=key,
                    state=State.HELD if minute or key < 3 else State.QUEUED,
                    due_at=NOON + timedelta(minutes=minute), run_at=NOON,
                )
                for minute in minutes
            )  # fmt: skip
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL enable_seqscan = off")  # as beat does
            parameters = {"limit": 500, "first": FIRST_ID, "last": LAST_ID}
            cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {RELEASE_HELD}", parameters)
            ((explained,),) = cursor.fetchall()
        assert rows_read(explained[0]["Plan"]) < 60
        assert Run.objects.filter(state=State.SCHEDULED).count() == 2


def rows_read(node: dict[str, Any]) -> int:
    """Return how many rows a plan's scans have read, those they threw away too."""
    read = sum(node.get(key, 0) for key in ("Actual Rows", "Rows Removed by Filter"))
    own = read * node["Actual Loops"] if "Relation Name" in node else 0
    return int(own) + sum(rows_read(part) for part in node.get("Plans", ()))


@pytest.mark.django_db(transaction=True)
class TestHeldRunsAndOthers:
    """A second connection changes a held run while it is being released."""

    @pytest.mark.parametrize("release", ["finish", "net"])
    def test_one_that_was_cancelled_meanwhile_stays_cancelled(self, release: str) -> None:
        held = run(State.HELD, schedule_id=7)
        running = run(State.RUNNING, schedule_id=7) if release == "finish" else None
        act: Callable[[], object] = (
            (lambda: finish(running.pk, 1, SUCCEEDED)) if running else release_held
        )
        with second_connection() as other:
            other.execute(
                "UPDATE scheduling_run SET state = 'cancelled', finished_at = now() WHERE id = %s",
                [held.pk],
            )
            releasing = in_thread(act)
            wait_for(is_blocked)
            other.commit()
            releasing.result(5)
        assert fresh(held).state == State.CANCELLED
        if running:
            assert fresh(running).state == State.SUCCEEDED

    @pytest.mark.parametrize("release", ["finish", "net"])
    def test_one_that_runs_already_is_not_started_a_second_time(self, release: str) -> None:
        held = run(State.HELD, schedule_id=7)
        running = run(State.RUNNING, schedule_id=7) if release == "finish" else None
        act: Callable[[], object] = (
            (lambda: finish(running.pk, 1, SUCCEEDED)) if running else release_held
        )
        with second_connection() as other:
            other.execute(
                "UPDATE scheduling_run SET state = 'running', worker = 'w2',"
                " lease_expires_at = now() + interval '30 s' WHERE id = %s", [held.pk],
            )  # fmt: skip
            releasing = in_thread(act)
            wait_for(is_blocked)
            other.commit()
            releasing.result(5)
        assert (fresh(held).state, fresh(held).worker) == (State.RUNNING, "w2")

    def test_two_that_end_at_once_leave_a_held_one_for_the_net(self) -> None:
        first, second = run(State.RUNNING, schedule_id=7), run(State.RUNNING, schedule_id=7)
        held = run(State.HELD, schedule_id=7)
        with transaction.atomic():
            finish(first.pk, 1, SUCCEEDED)
            in_thread(lambda: finish(second.pk, 1, SUCCEEDED)).result(5)
        assert fresh(held).state == State.HELD
        assert release_held() == 1
        assert fresh(held).state == State.SCHEDULED


@pytest.mark.django_db
class TestLostLeases:
    @pytest.fixture(autouse=True)
    def _short_leases(self, settings: Settings) -> None:
        # So that Postgres, started for these tests, has been there for longer than one.
        settings.RUN_LEASE = timedelta(milliseconds=10)

    def lost(self, *, ago: timedelta = timedelta(0), **columns: Any) -> Run:
        return run(State.RUNNING, lease_expires_at=clock.now() - ago, **columns)

    def test_a_lost_lease_is_a_failed_attempt_and_another_one_follows(self) -> None:
        made = self.lost()
        assert recover_lost_leases() == 1
        after = fresh(made)
        assert (after.state, after.attempt, after.failures) == (State.SCHEDULED, 2, 1)
        assert after.errors[0]["error"] == (
            "WorkerLostError: worker w1 was lost: its lease ran out"
        )
        assert after.run_at <= clock.now()

    def test_a_lease_that_stands_is_left_alone(self) -> None:
        run(State.RUNNING)
        assert recover_lost_leases() == 0

    def test_the_last_attempt_that_is_lost_fails_the_run(self) -> None:
        made = self.lost(attempt=3, failures=2)
        recover_lost_leases()
        after = fresh(made)
        assert (after.state, after.attempt, after.failures) == (State.FAILED, 3, 3)
        assert stored_state(made) == states.FAILURE
        assert isinstance(current_app.AsyncResult(str(made.pk)).result, WorkerLostError)

    def test_at_most_once_is_at_most_once(self) -> None:
        made = self.lost(max_attempts=1)
        recover_lost_leases()
        assert fresh(made).state == State.FAILED

    def lost_before_postgres_started(self, **columns: Any) -> Run:
        with connection.cursor() as cursor:
            cursor.execute("SELECT clock_timestamp() - pg_postmaster_start_time()")
            uptime = cursor.fetchone()[0]
        return self.lost(ago=uptime + timedelta(seconds=1), **columns)

    def test_a_lease_from_before_postgres_started_counts_no_failure(self) -> None:
        made = self.lost_before_postgres_started(max_attempts=2, failures=1)
        recover_lost_leases()
        after = fresh(made)
        assert (after.state, after.attempt, after.failures) == (State.SCHEDULED, 2, 1)

    def test_at_most_once_is_that_even_where_postgres_was_away(self) -> None:
        made = self.lost_before_postgres_started(max_attempts=1)
        recover_lost_leases()
        after = fresh(made)
        assert (after.state, after.attempt, after.failures) == (State.FAILED, 1, 1)

    def test_nobody_is_judged_until_postgres_has_been_there_for_a_lease(
        self, settings: Settings
    ) -> None:
        settings.RUN_LEASE = timedelta(days=3650)
        self.lost()
        assert recover_lost_leases() == 0

    def test_it_takes_at_most_a_batch(self) -> None:
        for _ in range(5):
            self.lost()
        assert [recover_lost_leases(limit=3), recover_lost_leases(limit=3)] == [3, 2]


@pytest.mark.django_db(transaction=True)
def test_a_lease_renewed_while_it_is_judged_is_not_taken_away(settings: Settings) -> None:
    settings.RUN_LEASE = timedelta(milliseconds=10)
    made = run(State.RUNNING, lease_expires_at=clock.now())
    with second_connection() as worker:
        worker.execute(
            "UPDATE scheduling_run SET lease_expires_at = now() + interval '30 s' WHERE id = %s",
            [made.pk],
        )
        assert in_thread(recover_lost_leases).result(5) == 0  # it does not wait for the row
        worker.commit()
    assert recover_lost_leases() == 0
    # And had it read the old lease just before the renewal:
    old = made.lease_expires_at
    assert not finish(made.pk, made.attempt, Outcome(State.SCHEDULED, "lost", lease=old))
    assert fresh(made).state == State.RUNNING


@pytest.mark.django_db
class TestAttempts:
    def test_another_follows_until_the_last_allowed(self) -> None:
        error = WorkerLostError("gone")
        kept = failed_attempt(ADD, None, 1, error)
        assert (kept.state, kept.failed) == (State.SCHEDULED, True)
        last = failed_attempt(ADD, None, 2, error)
        assert (last.state, last.failed) == (State.FAILED, True)
        assert last.result is not None
        assert last.result.status == states.FAILURE

    def test_a_job_that_may_retry_for_ever_may_not_take_worker_after_worker_down(self) -> None:
        made = run(State.RUNNING, task=for_ever.name, failures=40)
        lost, error = partial(failed_attempt, for_ever.name, None), WorkerLostError("gone")
        outcomes = [
            lost(40, error),
            replace(AGAIN, reason="it asks for a retry"),
            lost(42, error, counts=False),
            lost(42, error),
            lost(43, error),
        ]
        for attempt, outcome in enumerate(outcomes, start=1):
            assert fresh(made).state != State.FAILED
            assert finish(made.pk, attempt, outcome)
            Run.objects.filter(pk=made.pk, state=State.SCHEDULED).update(state=State.RUNNING)
        after = fresh(made)
        assert (after.state, after.attempt, after.failures) == (State.FAILED, 5, 44)
        assert after.reason == "WorkerLostError: gone"
        assert [error["attempt"] for error in after.errors if "blow" in error] == [1, 4]
        assert stored_state(made) == states.FAILURE

    def test_what_does_not_count_uses_none_up(self) -> None:
        kept = failed_attempt(ADD, 2, 5, WorkerLostError("gone"), counts=False)
        assert (kept.state, kept.failed) == (State.SCHEDULED, False)


@pytest.mark.django_db
class TestCancel:
    @pytest.mark.parametrize("state", WAITING)
    def test_what_waits_is_cancelled_at_once(self, state: State) -> None:
        made = run(state)
        after = cancel(made.pk, by="ann")
        assert (after.state, after.reason) == (State.CANCELLED, "cancelled by ann")
        assert after.finished_at is not None
        assert stored_state(made) == states.REVOKED

    def test_what_runs_is_told(self) -> None:
        after = cancel(run(State.RUNNING).pk, by="ann")
        assert (after.state, after.cancel_requested_by) == (State.RUNNING, "ann")

    @pytest.mark.parametrize("state", FINAL)
    def test_what_has_ended_cannot_be_cancelled(self, state: State) -> None:
        made = run(state)
        before = snapshot(made)
        with pytest.raises(SchedulingError, match=f"is {state} already"):
            cancel(made.pk, by="ann")
        assert snapshot(made) == before

    def test_what_does_not_exist_cannot_be_cancelled(self) -> None:
        with pytest.raises(SchedulingError, match="no run has the id"):
            cancel(uuid7(), by="ann")

    def test_the_outcome_of_a_running_one_names_who_asked(self) -> None:
        made = run(State.RUNNING)
        finish(made.pk, 1, cancelled("ann"))
        after = fresh(made)
        assert (after.state, after.reason) == (State.CANCELLED, "cancelled by ann")
        assert stored_state(made) == states.REVOKED

    def test_cancelling_a_schedules_runs_leaves_others_and_running_ones(self) -> None:
        mine = [run(state, schedule_id=7) for state in WAITING]
        running, other = run(State.RUNNING, schedule_id=7), run(schedule_id=8)
        assert cancel_waiting_of(7, reason="because") == 3
        assert {fresh(one).reason for one in mine} == {"because"}
        assert (fresh(running).state, fresh(other).state) == (State.RUNNING, State.SCHEDULED)

    def test_a_long_name_of_who_asks_is_no_trouble(self) -> None:
        cancel(run(State.RUNNING).pk, by="x" * 200)


@pytest.mark.django_db(transaction=True)
def test_cancelling_waits_for_a_claim_that_is_being_made_and_then_tells_the_worker() -> None:
    made = run(State.QUEUED)
    with second_connection() as worker:
        worker.execute("UPDATE scheduling_run SET state = 'running' WHERE id = %s", [made.pk])
        asking = in_thread(lambda: cancel(made.pk, by="ann"))
        assert not asking.done()
        worker.commit()
        after = asking.result(5)
    assert (after.state, after.cancel_requested_by) == (State.RUNNING, "ann")


@pytest.mark.django_db
class TestExpiry:
    def test_one_that_had_started_says_that_its_next_attempt_had_not(self) -> None:
        first, second = (run(expires_at=clock.now(), attempt=attempt) for attempt in (1, 2))
        assert expire_waiting() == 2
        assert fresh(first).reason == "expired: its expiry time passed before it started"
        assert fresh(second).reason == "expired: its expiry time passed before its next attempt"
        for made in (first, second):
            assert fresh(made).state == State.EXPIRED
            assert str(current_app.AsyncResult(str(made.pk)).result) == fresh(made).reason

    @pytest.mark.parametrize("state", WAITING)
    def test_what_waits_beyond_its_expiry_has_expired(self, state: State) -> None:
        made, other = run(state, expires_at=clock.now()), run(state)
        later = run(state, expires_at=datetime(2099, 1, 1, tzinfo=UTC))
        assert expire_waiting() == 1
        after = fresh(made)
        assert (after.state, after.reason[:8]) == (State.EXPIRED, "expired:")
        assert {fresh(other).state, fresh(later).state} == {state}
        assert stored_state(made) == states.REVOKED

    @pytest.mark.parametrize("state", [state for state in State if state not in WAITING])
    def test_nothing_else_expires(self, state: State) -> None:
        run(state, expires_at=clock.now())
        assert expire_waiting() == 0


@pytest.mark.django_db
class TestUnknownTasks:
    def test_a_queued_run_goes_back_to_wait_with_its_attempt(self) -> None:
        made = run(State.QUEUED, task="gone.task")
        assert hand_back_unknown(made.pk, 1, "gone.task", "w1")
        after = fresh(made)
        assert (after.state, after.attempt, after.failures, after.queued_at) == (
            State.SCHEDULED, 1, 0, None,
        )  # fmt: skip
        assert after.reason == "no worker knows task gone.task (last asked: w1)"
        assert timedelta(seconds=25) < after.run_at - clock.now() <= timedelta(seconds=30)

    @pytest.mark.parametrize("state", [state for state in State if state != State.QUEUED])
    def test_nothing_else_moves(self, state: State) -> None:
        made = run(state, task="gone.task")
        before = snapshot(made)
        assert not hand_back_unknown(made.pk, 1, "gone.task", "w1")
        assert snapshot(made) == before

    @pytest.mark.parametrize(("attempt", "task"), [(2, "gone.task"), (1, "another.task")])
    def test_another_attempt_or_task_moves_nothing(self, attempt: int, task: str) -> None:
        made = run(State.QUEUED, task="gone.task")
        before = snapshot(made)
        assert not hand_back_unknown(made.pk, attempt, task, "w1")
        assert snapshot(made) == before

    def test_a_message_without_a_run_is_none(self) -> None:
        assert not hand_back_unknown(uuid7(), 1, "gone.task", "w1")
