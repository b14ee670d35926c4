"""How a worker's child runs a job, through the tracer that Celery builds for it.

Its transactions are real ones: after a job it drops a connection that is left inside one.
"""

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from billiard.process import current_process
from celery import Task, current_app, shared_task, signals, states
from celery.exceptions import Ignore, Reject, Retry, WorkerLostError
from django.db import connection, connections, transaction
from django.db.backends.signals import connection_created
from django_celery_results.models import TaskResult
from psycopg.pq import TransactionStatus

from scheduling import clock
from scheduling.beat import firing
from scheduling.broker.signing import ATTEMPT
from scheduling.errors import EnqueueError
from scheduling.execution.attempts import backoff
from scheduling.execution.tracing import NOTHING_DONE
from scheduling.ids import uuid7
from scheduling.jobs import CurrentRun, Job, PermanentError, current_run, enqueue
from scheduling.models import FINAL, Origin, Run, State
from scheduling.postgres import connections as connections_of_jobs
from scheduling.runs.running import current
from scheduling.worker_process import process_of
from tests.jobs import tasks
from tests.scheduling.child import deliver, forget_tracers, hint
from tests.scheduling.ledger import NOON, run

seen: list[Any] = []


@shared_task(bind=True)
def look(self: "Task[Any, Any]", *args: Any, **kwargs: Any) -> str:
    request = self.request
    seen.append((current_run(), request.id, request.retries, request.args, request.kwargs))
    seen.append(request.get("tenant"))
    return "looked"


@shared_task
def misbehave(how: str) -> Any:
    if how == "text":
        raise ValueError("a \0 and a \ud800")
    if how == "length":
        raise ValueError(f"the beginning {'x' * 1_000_000} the end")
    if how == "value":
        return "a \0 and a \ud800"
    if how == "retry":
        raise Retry(when=NOON)
    if how == "reject and requeue":
        raise Reject("busy", requeue=True)
    if how == "database":
        run_of = current_run()
        assert run_of is not None
        with transaction.atomic():
            Run.objects.filter(pk=run_of.id).update(task="x" * 201)
    raise {"ignore": Ignore, "reject": Reject, "exit": SystemExit, "key": KeyError}[how]


opened: list[Any] = []


def rows() -> Iterator[int]:
    with transaction.atomic():
        yield from range(9)


def stop_among(rows: Iterator[int]) -> None:
    next(rows)
    raise ValueError("stopped")


@shared_task
def leaves_a_block_open(how: str) -> None:
    """Leave Django's atomic block without its end."""
    if how in ("fails in a generator", "fails and hides it", "retries"):
        try:
            stop_among(rows())
        except ValueError as error:
            if how == "fails in a generator":
                raise
            if how == "fails and hides it":
                raise KeyError("hidden") from error
            stopped = error
        raise Retry(exc=stopped)
    opened.append(transaction.atomic())
    opened[-1].__enter__()
    if how == "closes":
        connection.close()
    if how == "fails":
        raise ValueError("stopped")


@shared_task
def is_cut_off() -> None:
    other = connection.copy()
    with other.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(%s, 5000)", [connection.connection.info.backend_pid]
        )
    other.close()


@shared_task
def ask_another_database(leave: str = "") -> int:
    other = connections["other"]
    if leave == "a block":
        opened.append(transaction.atomic("other"))
        opened[-1].__enter__()
    with other.cursor() as cursor:
        if leave == "a transaction":
            cursor.execute("BEGIN")
        cursor.execute("SELECT 1")
        return int(cursor.fetchone()[0])


@shared_task
def says(statement: str, of: str = "default") -> str:
    with connections[of].cursor() as cursor:
        cursor.execute(statement)
        return str(cursor.fetchone()[0]) if cursor.description else ""


@shared_task(bind=False, base=Job, max_attempts=1)
def only_once() -> None:
    raise ValueError("no")


@shared_task(bind=False, base=Job, max_attempts=5)
def five_times() -> None:
    raise ValueError("no")


@shared_task(bind=True, max_retries=1)
def gives_up(self: "Task[Any, Any]") -> None:
    raise self.retry(exc=ValueError("no"), countdown=3)


@shared_task(bind=True, max_retries=9)
def changes_its_call(self: "Task[Any, Any]", x: int, y: int = 0) -> None:
    raise self.retry(args=(x + 1,), kwargs={"y": 5}, eta=datetime(2099, 1, 1, tzinfo=UTC))


@shared_task(bind=True)
def calls_itself(self: "Task[Any, Any]", depth: int) -> int:
    return depth if depth > 2 else int(self(depth + 1))


@shared_task(bind=True, max_retries=0)
def runs_another_that_gives_up(self: "Task[Any, Any]") -> None:
    gives_up.apply(throw=False)
    raise ValueError("mine")


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    seen.clear()


@pytest.fixture(autouse=True)
def _no_redis_needed(redis_client: object) -> None:
    pass


@pytest.fixture(autouse=True)
def _tracers() -> Iterator[None]:
    yield
    forget_tracers()


@pytest.fixture
def other_database() -> Iterator[Any]:
    """The ledger's database once more, under another alias."""
    connections.settings["other"] = dict(connection.settings_dict)
    other: Any = connections["other"]
    # Django's own asks whether the test may use this alias.
    other.ensure_connection = lambda: None if other.connection else other.connect()
    try:
        yield other
    finally:
        other.in_atomic_block = False
        other.close()
        del connections["other"], connections.settings["other"]


def end_backend(of: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [of.connection.info.backend_pid])


def of(task: Any, *args: Any, state: State = State.QUEUED, **columns: Any) -> Run:
    from scheduling.registry import encode

    return run(state, task=task.name, args=encode(args), **columns)


def fresh(made: Run) -> Run:
    return Run.objects.get(pk=made.pk)


@pytest.fixture
def signalled() -> Iterator[list[str]]:
    """The signals that were sent while the test ran."""
    sent: list[str] = []
    receivers: list[tuple[Any, Callable[..., None]]] = []
    for name in ("prerun", "postrun", "success", "failure", "retry", "internal_error"):
        signal = getattr(signals, f"task_{name}")

        def receive(name: str = name, **_: Any) -> None:
            sent.append(name)

        signal.connect(receive, weak=False)
        receivers.append((signal, receive))
    yield sent
    for signal, receiver in receivers:
        signal.disconnect(receiver)


@pytest.fixture
def no_logs() -> Iterator[None]:
    """For texts that pytest's own report could not carry from one process to another."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.django_db(transaction=True)
class TestAClaim:
    def test_a_hint_runs_its_run(self, signalled: list[str]) -> None:
        made = of(tasks.add, 1, 2)
        before = clock.now()
        returned = hint(made)
        assert returned.retval == 3
        assert signalled == ["prerun", "success", "postrun"]
        after = fresh(made)
        assert (after.state, after.attempt, after.worker) == (
            State.SUCCEEDED, 1, process_of(current_app).name,
        )  # fmt: skip
        assert after.started_at is not None
        assert after.finished_at is not None
        assert before <= after.started_at <= after.finished_at
        assert current_app.AsyncResult(str(made.pk)).get(timeout=1) == 3

    def test_a_run_that_was_not_published_yet_may_start_when_its_time_has_come(self) -> None:
        made = of(tasks.add, 1, 2, state=State.SCHEDULED)
        hint(made)
        assert fresh(made).state == State.SUCCEEDED

    @pytest.mark.parametrize(
        ("columns", "attempt"),
        [
            ({"run_at": datetime(2099, 1, 1, tzinfo=UTC)}, 1),
            ({"expires_at": NOON}, 1),
            ({"attempt": 2}, 1),
            ({"attempt": 2}, 3),
            ({"state": State.HELD}, 1),
            ({"state": State.RUNNING}, 1),
            *(({"state": state}, 1) for state in FINAL),
        ],
    )
    def test_a_hint_that_may_not_start_does_nothing_at_all(
        self, columns: dict[str, Any], attempt: int, signalled: list[str]
    ) -> None:
        made = of(look, **columns)
        before = Run.objects.values().get(pk=made.pk)
        assert hint(made, attempt) == NOTHING_DONE
        assert (seen, signalled) == ([], [])
        assert Run.objects.values().get(pk=made.pk) == before
        assert not TaskResult.objects.exists()

    def test_a_second_hint_does_nothing(self, signalled: list[str]) -> None:
        made = of(tasks.add, 1, 2)
        hint(made)
        before = Run.objects.values().get(pk=made.pk)
        signalled.clear()
        assert hint(made) == NOTHING_DONE
        assert signalled == []
        assert Run.objects.values().get(pk=made.pk) == before

    @pytest.mark.parametrize(
        ("task_id", "attempt"),
        [
            (None, "x"),
            (None, []),
            (None, -1),
            (None, {"a": 1}),
            ("garbage", 1),
            ("", 1),
            (str(UUID(int=7)), 1),
        ],
    )
    def test_whatever_somebody_writes_into_redis_does_nothing(
        self, task_id: str | None, attempt: Any, signalled: list[str]
    ) -> None:
        made = of(look)
        assert hint(made, task_id=task_id, **{ATTEMPT: attempt}) == NOTHING_DONE
        assert (seen, signalled) == ([], [])
        assert fresh(made).state == State.QUEUED

    @pytest.mark.parametrize("attempt", [None, float("inf"), 2**40])
    def test_no_number_of_an_attempt_is_an_error(self, attempt: Any) -> None:
        made = of(look)
        assert hint(made, **{ATTEMPT: attempt}) == NOTHING_DONE

    def test_a_forged_task_name_runs_nothing_of_another_run(self) -> None:
        made = of(tasks.add, 1, 2)
        deliver(look.name, str(made.pk), **{ATTEMPT: 1})
        assert seen == [], "the run is of another task than the hint says"

    def test_arguments_come_from_the_ledger_and_not_from_the_message(self) -> None:
        made = of(tasks.add, 1, 2)
        deliver(tasks.add.name, str(made.pk), args=(40, 2), **{ATTEMPT: 1})
        assert current_app.AsyncResult(str(made.pk)).get(timeout=1) == 3


@pytest.mark.django_db(transaction=True)
class TestInside:
    def test_a_job_knows_which_run_it_is(self) -> None:
        made = of(look, 1, schedule_name="nightly", due_at=NOON, attempt=3, failures=2,
                  kwargs='{"a": 2}', origin=Origin.SCHEDULE, schedule_id=7)  # fmt: skip
        hint(made)
        current, task_id, retries, args, kwargs = seen[0]
        assert current == CurrentRun(made.pk, "nightly", NOON, 3)
        assert (task_id, retries, args, kwargs) == (str(made.pk), 2, [1], {"a": 2})
        assert current_run() is None

    def test_a_run_of_no_schedule_has_no_name(self) -> None:
        hint(of(look))
        assert seen[0][0].schedule is None

    def test_a_plain_message_is_no_run(self) -> None:
        deliver(look.name, str(uuid7()), args=(1,))
        assert seen[0][0] is None
        assert seen[0][3] == [1]

    def test_the_schedules_headers_are_in_the_request(self) -> None:
        hint(of(look, options='{"headers": {"tenant": "a"}}'))
        assert seen[1] == "a"

    def test_dates_uuids_and_decimals_arrive_as_such(self) -> None:
        hint(of(look, NOON, UUID(int=7)))
        assert seen[0][3] == [NOON, UUID(int=7)]

    def test_a_job_that_calls_itself_makes_no_second_run(self) -> None:
        made = of(calls_itself, 0)
        assert hint(made).retval == 3
        assert fresh(made).state == State.SUCCEEDED
        assert Run.objects.count() == 1

    def test_the_result_names_the_task_its_arguments_and_its_schedule(self) -> None:
        made = of(tasks.add, 1, 2, schedule_name="nightly", schedule_id=7)
        hint(made)
        row: Any = TaskResult.objects.get(task_id=str(made.pk))
        assert (row.status, row.task_name, row.periodic_task_name, row.worker) == (
            "SUCCESS", tasks.add.name, "nightly", "h",
        )  # fmt: skip
        assert row.task_args == '"[1, 2]"'


@pytest.mark.django_db(transaction=True)
class TestEndings:
    def test_a_failure_is_tried_again_with_backoff_at_a_lower_priority(
        self, tmp_path: Path, signalled: list[str]
    ) -> None:
        made = of(tasks.fail, str(tmp_path / "f"), 9)
        hint(made)
        after = fresh(made)
        assert (after.state, after.attempt, after.failures, after.priority) == (
            State.SCHEDULED, 2, 1, 9,
        )  # fmt: skip
        assert timedelta(seconds=4) < after.run_at - clock.now() <= timedelta(seconds=10)
        assert after.errors[0]["error"] == "ConnectionError: down \\x00 the 1. time"
        assert "tests/jobs/tasks.py" in after.errors[0]["traceback"]
        assert current_app.AsyncResult(str(made.pk)).state == states.RETRY
        assert signalled == ["prerun", "retry", "postrun"]

    def test_the_last_attempt_fails_the_run(self, tmp_path: Path, signalled: list[str]) -> None:
        made = of(tasks.fail, str(tmp_path / "f"), 9, attempt=3, failures=2)
        hint(made)
        after = fresh(made)
        assert (after.state, after.attempt, after.failures) == (State.FAILED, 3, 3)
        assert after.reason == "ConnectionError: down \\x00 the 1. time"
        assert signalled == ["prerun", "failure", "postrun"]
        assert current_app.AsyncResult(str(made.pk)).state == states.FAILURE

    @pytest.mark.parametrize(("task", "allowed"), [(only_once, 1), (five_times, 5)])
    def test_a_job_says_how_many_attempts_it_has(self, task: Any, allowed: int) -> None:
        for failures in range(allowed):
            made = of(task, failures=failures)
            hint(made)
            last = failures == allowed - 1
            assert fresh(made).state == (State.FAILED if last else State.SCHEDULED)

    def test_whoever_asked_for_a_run_has_the_last_word_on_its_attempts(self) -> None:
        once, twice = of(five_times, max_attempts=1), of(only_once, max_attempts=2)
        hint(once)
        hint(twice)
        assert (fresh(once).state, fresh(twice).state) == (State.FAILED, State.SCHEDULED)

    def test_a_permanent_error_is_not_tried_again(self) -> None:
        made = of(tasks.fail_for_good, "gone")
        hint(made)
        after = fresh(made)
        assert (after.state, after.reason) == (State.FAILED, "PermanentError: gone")

    def test_autoretry_follows_celerys_own_options(self, tmp_path: Path) -> None:
        made = of(tasks.autoretry, str(tmp_path / "f"), 9)
        for attempt in (1, 2):
            hint(made, attempt)
            assert fresh(made).state == State.SCHEDULED
            Run.objects.update(run_at=clock.now())
        hint(made, 3)
        after = fresh(made)
        assert (after.state, after.failures) == (State.FAILED, 3)
        assert [error["error"] for error in after.errors] == ["ConnectionError: down"] * 3

    def test_autoretry_stops_at_what_was_asked_for(self, tmp_path: Path) -> None:
        made = of(tasks.autoretry, str(tmp_path / "f"), 9, max_attempts=1)
        hint(made)
        assert fresh(made).state == State.FAILED

    def test_a_connection_that_was_lost_is_replaced_and_blames_no_job(
        self, caplog: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        made = of(tasks.write, str(tmp_path / "f"))
        connection.ensure_connection()
        assert connection.connection is not None
        connection.connection.close()
        hint(made)
        assert fresh(made).state == State.SUCCEEDED
        assert "connection_left_open" not in caplog.text

    def test_what_was_asked_for_one_run_is_not_the_next_ones(self, tmp_path: Path) -> None:
        for attempts in (2, 1):
            hint(of(tasks.autoretry, str(tmp_path / "f"), 9, max_attempts=attempts))
            made = of(tasks.autoretry, str(tmp_path / "f"), 9)
            hint(made)
            assert fresh(made).state == State.SCHEDULED

    def test_a_retry_that_gives_up_is_not_tried_again_by_default(self) -> None:
        made = of(gives_up, failures=1)
        hint(made)
        assert (fresh(made).state, fresh(made).reason) == (State.FAILED, "ValueError: no")

    def test_a_retry_inside_a_transaction_survives_its_rollback(self, tmp_path: Path) -> None:
        made = of(tasks.retry_in_transaction, str(tmp_path / "f"), 1)
        hint(made)
        assert fresh(made).state == State.SCHEDULED
        hint(made, 2)
        assert fresh(made).state == State.SUCCEEDED
        assert (tmp_path / "f").read_text() == "retries 0\nretries 1\n"

    def test_a_retry_may_change_its_arguments_and_its_time(self) -> None:
        made = of(changes_its_call, 1)
        hint(made)
        after = fresh(made)
        assert (after.args, after.kwargs) == ("[2]", '{"y": 5}')
        assert after.run_at == datetime(2099, 1, 1, tzinfo=UTC)
        assert Run.objects.count() == 1

    def test_a_bare_retry_is_tried_again(self) -> None:
        made = of(misbehave, "retry")
        hint(made)
        assert (fresh(made).state, fresh(made).attempt) == (State.SCHEDULED, 2)

    def test_a_job_that_replaces_itself_goes_on_as_the_other_one(self, tmp_path: Path) -> None:
        made = of(tasks.replace_itself, str(tmp_path / "f"))
        hint(made)
        after = fresh(made)
        assert (after.state, after.task, after.failures) == (
            State.SCHEDULED, tasks.write.name, 0,
        )  # fmt: skip
        hint(after)
        assert (tmp_path / "f").read_text() == "replacing\nreplaced\n"
        assert fresh(made).state == State.SUCCEEDED

    @pytest.mark.parametrize(
        ("how", "state", "reason"),
        [
            ("ignore", State.SUCCEEDED, "the job ended with Ignore: no result"),
            ("reject", State.FAILED, "rejected by the job"),
            ("reject and requeue", State.SCHEDULED, "rejected by the job: busy"),
        ],
    )
    def test_celerys_other_endings_have_a_state_and_a_reason(
        self, how: str, state: State, reason: str
    ) -> None:
        made = of(misbehave, how)
        hint(made)
        assert (fresh(made).state, fresh(made).reason) == (state, reason)

    def test_a_job_without_results_succeeds_without_one(self, tmp_path: Path) -> None:
        made = of(tasks.without_result, str(tmp_path / "f"))
        hint(made)
        assert fresh(made).state == State.SUCCEEDED
        assert not TaskResult.objects.exists()

    def test_a_result_that_is_no_json_is_a_failure(self) -> None:
        made = of(tasks.unserialisable)
        hint(made)
        after = fresh(made)
        assert after.state == State.FAILED
        assert "not JSON serializable" in after.reason
        assert current_app.AsyncResult(str(made.pk)).state == states.FAILURE

    @pytest.mark.parametrize("how", ["text", "value"])
    def test_no_text_that_postgres_refuses_stops_an_ending(self, how: str, no_logs: None) -> None:
        made = of(misbehave, how, max_attempts=1)
        hint(made)
        assert fresh(made).state == (State.FAILED if how == "text" else State.SUCCEEDED)
        assert TaskResult.objects.filter(task_id=str(made.pk)).exists()

    def test_who_asks_for_the_result_of_one_that_exits_does_not_exit(self) -> None:
        made = of(misbehave, "exit", max_attempts=1)
        hint(made)
        with pytest.raises(WorkerLostError, match="SystemExit"):
            current_app.AsyncResult(str(made.pk)).get(timeout=1)

    def test_of_an_error_that_says_very_much_both_ends_are_kept(self) -> None:
        made = of(misbehave, "length", max_attempts=1)
        hint(made)
        after = fresh(made)
        assert after.reason.startswith("ValueError: the beginning")
        assert after.reason.endswith("the end")
        assert after.reason == after.errors[0]["error"]
        assert len(after.reason) < 11_000
        assert "in misbehave" in after.errors[0]["traceback"]

    @pytest.mark.parametrize("child", [True, False])
    def test_a_process_that_is_made_to_exit_does_not_wait_for_its_lease(
        self, child: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = of(misbehave, "exit")
        process: Any = current_process()
        monkeypatch.setitem(process._config, "daemon", child)
        with pytest.raises(SystemExit) if child else nullcontext():
            assert hint(made) == NOTHING_DONE
        after = fresh(made)
        assert (after.state, after.attempt, after.errors[0]["error"]) == (
            State.SCHEDULED, 2, "SystemExit: ",
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ("[1]", "missing"),
            ("[1, 2, 3]", "takes 2 positional"),
            ("[1,", "args are not JSON"),
            ("{}", "args must be a JSON array"),
        ],
    )
    def test_arguments_that_do_not_fit_any_more_fail_the_run_before_its_code_runs(
        self, args: str, message: str, signalled: list[str]
    ) -> None:
        made = run(State.QUEUED, args=args)
        assert hint(made) == NOTHING_DONE
        after = fresh(made)
        assert (after.state, signalled) == (State.FAILED, [])
        assert message in after.reason
        assert current_app.AsyncResult(str(made.pk)).state == states.FAILURE

    @pytest.mark.parametrize("options", ["", "{", "[]", "null"])
    def test_options_that_cannot_be_read_fail_the_run_before_its_code_runs(
        self, options: str, signalled: list[str]
    ) -> None:
        made = run(State.QUEUED, args="[1, 2]", options=options)
        assert hint(made) == NOTHING_DONE
        after = fresh(made)
        assert (after.state, signalled) == (State.FAILED, [])
        assert "options" in after.reason

    def test_headers_that_are_none_are_left_out(self) -> None:
        made = run(State.QUEUED, args="[1, 2]", options='{"headers": [1]}')
        hint(made)
        assert fresh(made).state == State.SUCCEEDED

    def test_a_worker_that_lost_its_fence_records_nothing(self) -> None:
        made = of(tasks.add, 1, 2)
        tracer = current_app.tasks[tasks.add.name]

        def steal(**_: Any) -> None:
            Run.objects.filter(pk=made.pk).update(attempt=2, state=State.QUEUED, worker="")

        signals.task_prerun.connect(steal, weak=False)
        try:
            hint(made)
        finally:
            signals.task_prerun.disconnect(steal)
        assert tracer is not None
        assert (fresh(made).state, fresh(made).attempt) == (State.QUEUED, 2)
        assert not TaskResult.objects.exists()

    def test_another_jobs_giving_up_is_not_this_ones(self) -> None:
        made = of(runs_another_that_gives_up)
        hint(made)
        assert fresh(made).state == State.SCHEDULED


@pytest.mark.django_db(transaction=True)
class TestOutsideATransaction:
    def test_a_database_error_in_a_job_is_its_failure(self) -> None:
        made = of(misbehave, "database")
        hint(made)
        after = fresh(made)
        assert (after.state, after.attempt) == (State.SCHEDULED, 2)
        assert "too long" in after.errors[0]["error"]

    def test_an_outcome_that_cannot_be_stored_fails_the_run_and_says_so(self) -> None:
        made = of(tasks.add, 1, 2)
        long_name = "x" * 300

        def spoil(**_: Any) -> None:
            running = current()
            assert running is not None
            current_app.tasks[tasks.add.name].request.update(task=long_name)

        signals.task_prerun.connect(spoil, weak=False)
        try:
            hint(made)
        finally:
            signals.task_prerun.disconnect(spoil)
        after = fresh(made)
        assert after.state == State.FAILED
        assert "could not be stored" in after.reason

    def test_a_schedules_occurrence_goes_from_due_to_done(self) -> None:
        from tests.scheduling.ledger import LONG_AGO, runs_of, schedule, set_plan

        row = schedule(args="[20, 22]")
        set_plan(row, clock.now() - timedelta(seconds=1))
        firing.fire_due(LONG_AGO)
        (made,) = runs_of(row)
        assert hint(made).retval == 42
        assert fresh(made).state == State.SUCCEEDED

    def test_a_connection_that_died_meanwhile_costs_the_run_nothing(self) -> None:
        made = of(is_cut_off)
        hint(made)
        assert fresh(made).state == State.SUCCEEDED

    @pytest.mark.parametrize(
        ("how", "failures", "state", "error"),
        [
            ("fails in a generator", 0, State.SCHEDULED, "ValueError: stopped"),
            ("fails and hides it", 0, State.SCHEDULED, "KeyError: 'hidden'"),
            ("fails and hides it", 2, State.FAILED, "KeyError: 'hidden'"),
            ("retries", 0, State.SCHEDULED, "ValueError: stopped"),
            ("fails", 0, State.SCHEDULED, "ValueError: stopped"),
            ("ends", 0, State.SUCCEEDED, None),
            ("closes", 0, State.SUCCEEDED, None),
        ],
    )
    def test_a_block_that_a_job_leaves_open_takes_no_end_with_it(
        self, how: str, failures: int, state: State, error: str | None
    ) -> None:
        made = of(leaves_a_block_open, how, failures=failures)
        hint(made)
        assert not connection.in_atomic_block
        gc.collect()  # a generator that is still open would roll back the later work
        assert fresh(made).state == state
        assert [kept["error"] for kept in fresh(made).errors] == [error][: error is not None]
        following = of(tasks.add, 1, 2)
        hint(following)
        assert fresh(following).state == State.SUCCEEDED

    def test_a_block_that_a_plain_message_leaves_open_takes_no_claim_with_it(self) -> None:
        made = of(tasks.add, 1, 2)
        deliver(leaves_a_block_open.name, str(uuid7()), args=("ends",))
        hint(made)
        assert not connection.in_atomic_block
        assert fresh(made).state == State.SUCCEEDED

    def test_another_database_that_restarts_costs_no_run(self, other_database: Any) -> None:
        for _ in range(2):
            made = of(ask_another_database)
            hint(made)
            assert fresh(made).state == State.SUCCEEDED
            end_backend(other_database)

    def test_another_database_may_be_of_another_kind(self, other_database: Any) -> None:
        connections.settings["other"] |= {
            "ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:", "OPTIONS": {},
        }  # fmt: skip
        other: Any = connections.create_connection("other")
        other.ensure_connection = lambda: None if other.connection else other.connect()
        connections["other"] = other
        for leave in ("", "a block", ""):
            made = of(ask_another_database, leave)
            hint(made)
            assert fresh(made).state == State.SUCCEEDED
            assert not other.in_atomic_block

    def test_without_health_checks_another_database_that_restarts_costs_one_attempt(
        self, other_database: Any
    ) -> None:
        other_database.settings_dict["CONN_HEALTH_CHECKS"] = False
        hint(of(ask_another_database))
        end_backend(other_database)
        made = [of(ask_another_database) for _ in range(3)]
        assert [(hint(one), fresh(one).state)[1] for one in made] == [
            State.SCHEDULED, State.SUCCEEDED, State.SUCCEEDED,
        ]  # fmt: skip

    @pytest.mark.parametrize("leave", ["a block", "a transaction"])
    def test_a_transaction_that_is_left_on_another_database_is_no_other_runs(
        self, leave: str, other_database: Any
    ) -> None:
        hint(of(ask_another_database, leave))
        hint(of(ask_another_database))
        assert not other_database.in_atomic_block
        assert other_database.connection.info.transaction_status == TransactionStatus.IDLE

    @pytest.mark.parametrize("of_alias", ["default", "other"])
    @pytest.mark.parametrize(
        ("setting", "value"),
        [
            ("timezone", "Asia/Tokyo"),
            ("search_path", "pg_catalog"),
            ("datestyle", "German"),
            ("default_transaction_read_only", "on"),
            ("lock_timeout", "7s"),
            ("statement_timeout", "9min"),
        ],
    )
    def test_a_setting_of_its_connection_is_no_other_runs(
        self, setting: str, value: str, of_alias: str, other_database: Any
    ) -> None:
        usual = hint(of(says, f"SHOW {setting}", of_alias)).retval
        made = of(says, f"SET {setting} = '{value}'", of_alias)
        hint(made)
        assert fresh(made).state == State.SUCCEEDED
        assert hint(of(says, f"SHOW {setting}", of_alias)).retval == usual != value

    @pytest.mark.parametrize(
        ("leave", "probe"),
        [
            ("SET app.tenant = '7'", "SELECT COALESCE(current_setting('app.tenant', true), '')"),
            ("DO $$ BEGIN PERFORM set_config('app.tenant', '7', false); END $$",
             "SELECT COALESCE(current_setting('app.tenant', true), '')"),
            ("SET ROLE pg_monitor", "SELECT current_user"),
            ("SET SESSION AUTHORIZATION pg_monitor", "SELECT session_user"),
            ("SELECT pg_advisory_lock(42)", "SELECT count(*) FROM pg_locks"
             " WHERE locktype = 'advisory' AND pid = pg_backend_pid()"),
            ("CREATE TEMP TABLE mine (x int)",
             "SELECT count(*) FROM pg_class WHERE relname = 'mine'"),
            ("PREPARE mine AS SELECT 1",
             "SELECT count(*) FROM pg_prepared_statements WHERE name = 'mine'"),
            ("LISTEN mine", "SELECT count(*) FROM pg_listening_channels()"),
            ("DECLARE mine CURSOR WITH HOLD FOR SELECT 1",
             "SELECT count(*) FROM pg_cursors WHERE name = 'mine'"),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("tracked", [True, False])
    def test_what_a_job_leaves_in_its_session_is_no_other_runs(
        self, leave: str, probe: str, tracked: bool
    ) -> None:
        usual = hint(of(says, probe)).retval
        before = connection.connection
        made, following = of(says, leave), of(says, probe)
        if tracked:
            hint(made)
        else:
            deliver(says.name, str(uuid7()), args=(leave,))
        assert hint(following).retval == usual
        assert fresh(made).state == (State.SUCCEEDED if tracked else State.QUEUED)
        assert (connection.connection is before) is not leave.startswith("PREPARE")

    def test_what_a_project_does_to_each_new_connection_stays_done(self) -> None:
        def greet(*, connection: Any, **_: Any) -> None:
            with connection.cursor() as cursor:
                cursor.execute("SET app.greeting = 'hello'")

        connection_created.connect(greet)
        try:
            connection.close()
            hint(of(says, "SET app.greeting = 'mine'"))
            assert hint(of(says, "SELECT current_setting('app.greeting')")).retval == "hello"
        finally:
            connection_created.disconnect(greet)
            connection.close()

    def test_a_job_that_asks_nothing_costs_no_statement(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cleaned = 0

        def clean(*_: object) -> bool:
            nonlocal cleaned
            cleaned += 1
            return True

        monkeypatch.setattr(connections_of_jobs, "_is_cleaned", clean)
        *quiet, asks = [*(of(tasks.add, 1, 2) for _ in range(2)), of(says, "SELECT 1")]
        raw: Any = connection.connection
        raw.truebeat_used = False  # by the test itself
        for made in quiet:
            hint(made)
        assert cleaned == 0
        hint(asks)
        assert cleaned == 1

    def test_a_setting_for_one_transaction_costs_no_connection(self) -> None:
        hint(of(says, "SELECT 1"))
        before = connection.connection
        hint(of(says, "BEGIN; SET LOCAL timezone = 'Asia/Tokyo'; COMMIT"))
        hint(of(says, "SELECT 1"))
        assert connection.connection is before is not None

    def test_before_its_outcome_is_written_postgres_is_asked_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str] = []

        def is_usable() -> bool:
            asked.append("SELECT 1")
            return True

        monkeypatch.setattr(connection, "is_usable", is_usable)
        made = of(tasks.add, 1, 2)
        hint(made)
        assert fresh(made).state == State.SUCCEEDED
        assert asked == []


@pytest.mark.django_db(transaction=True)
class TestPlainMessages:
    def test_they_run_and_store_their_result_as_ever(self) -> None:
        key = str(uuid7())
        assert deliver(tasks.add.name, key, args=(1, 2)).retval == 3
        assert current_app.AsyncResult(key).get(timeout=1) == 3
        assert not Run.objects.exists()

    def test_their_retry_becomes_a_row(self) -> None:
        key = str(uuid7())
        deliver(gives_up.name, key)
        (made,) = Run.objects.all()
        assert (str(made.pk), made.origin, made.failures) == (key, Origin.ADHOC, 1)
        assert timedelta(seconds=2) < made.run_at - clock.now() <= timedelta(seconds=3)
        Run.objects.update(run_at=clock.now())
        hint(made)
        assert fresh(made).state == State.FAILED

    def test_a_database_that_restarts_costs_at_most_one_of_them(self, other_database: Any) -> None:
        deliver(ask_another_database.name, str(uuid7()))
        end_backend(other_database)
        connection.connection.close()
        returned = [deliver(ask_another_database.name, str(uuid7())) for _ in range(2)]
        assert isinstance(returned[-1].retval, int)

    def test_the_retry_of_one_with_an_id_of_its_own_is_not_lost(self) -> None:
        deliver(gives_up.name, "import-2026-11-20")

    def test_the_retry_of_a_part_of_a_plain_chain_is_not_lost(self) -> None:
        chain = [tasks.add.si(1, 2)]
        deliver(gives_up.name, str(uuid7()), chain=chain)


class TestBackoff:
    @pytest.mark.parametrize(
        ("failures", "longest"), [(1, 10), (2, 20), (3, 40), (9, 2560), (10, 3600), (10_000, 3600)]
    )
    def test_it_doubles_up_to_an_hour_with_jitter_over_the_upper_half(
        self, failures: int, longest: int
    ) -> None:
        waits = [backoff(failures).total_seconds() for _ in range(200)]
        assert longest / 2 <= min(waits) < max(waits) <= longest
        assert len(set(waits)) > 100


def test_permanent_errors_are_ordinary_exceptions() -> None:
    assert issubclass(PermanentError, Exception)


class Greet(Job):
    """A task that is a class, as Celery allows."""

    name = "tests.greet"
    aliases = ("tests.greet.before",)

    def run(self, who: str) -> str:
        return f"hello {who}"


@pytest.mark.django_db(transaction=True)
def test_a_job_that_is_a_class_runs_under_its_names_and_has_its_arguments_checked() -> None:
    job = current_app.register_task(Greet())
    try:
        for name in ("tests.greet", "tests.greet.before"):
            made = run(State.QUEUED, task=name, args='["ann"]')
            hint(made)
            assert (fresh(made).state, fresh(made).reason) == (State.SUCCEEDED, "")
        assert enqueue(job, ("ann",)).task == "tests.greet"
        with pytest.raises(EnqueueError, match="missing a required argument"):
            enqueue(job)
    finally:
        for name in ("tests.greet", "tests.greet.before"):
            current_app.tasks.pop(name)
