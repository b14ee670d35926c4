"""Celery's documented `retry`, `replace`, eager and named calls hold for runs, durably."""

from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from celery import Task, chain, chord, current_app, shared_task, states
from celery.exceptions import Ignore, Reject, Retry
from celery.result import AsyncResult
from django.db import transaction
from django_celery_results.models import TaskResult
from pytest_django import Settings

from scheduling import clock
from scheduling.execution.finishing import finish, record_progress
from scheduling.ids import uuid7
from scheduling.jobs import Job, PermanentError
from scheduling.models import Priority, Run, State
from scheduling.runs.outcomes import failed
from tests.jobs.canvas import hear, heard, plus, told_id, total
from tests.scheduling.child import deliver, forget_tracers, hint, work
from tests.scheduling.ledger import run

pytestmark = pytest.mark.django_db(transaction=True)

SOON = timedelta(seconds=1)


@shared_task(bind=True, max_retries=5)
def again_with(self: "Task[Any, Any]", options: dict[str, Any]) -> str:
    if self.request.retries == 0:
        raise self.retry(**options)
    return "done"


@shared_task(bind=True, max_retries=None)
def for_ever(self: "Task[Any, Any]") -> None:
    raise self.retry(countdown=0)


@shared_task(bind=True, max_retries=1)
def once_more(self: "Task[Any, Any]", max_retries: int | None = None) -> None:
    raise self.retry(countdown=0, max_retries=max_retries)


@shared_task(autoretry_for=(Exception,), max_retries=5, default_retry_delay=0)
def for_good() -> None:
    raise PermanentError("gone")


@shared_task(dont_autoretry_for=(KeyError,))
def not_for_this(error: str) -> None:
    raise {"key": KeyError, "value": ValueError}[error]


@shared_task(bind=True, autoretry_for=(KeyError,), max_retries=1, default_retry_delay=0)
def asks_for_four(self: "Task[Any, Any]") -> None:
    self.retry(max_retries=4, throw=False)
    raise KeyError("no")


@shared_task(autoretry_for=(KeyError,), max_retries=2, default_retry_delay=0)
def at_once() -> None:
    raise KeyError("no")


@shared_task(bind=True)
def retries_within(self: "Task[Any, Any]", swallow: bool = False) -> str:
    if self.request.retries:
        return "done"
    with transaction.atomic():
        Run.objects.filter(pk=str(self.request.id)).update(reason="rolled back")
        try:
            raise self.retry(countdown=0)
        except Retry:
            if not swallow:
                raise
    return "swallowed"


class Clumsy(Job):
    """Its own handlers fail."""

    def on_failure(self, *args: Any) -> None:
        raise KeyError("on_failure")

    def on_retry(self, *args: Any) -> None:
        raise KeyError("on_retry")


@shared_task(base=Clumsy, bind=True, max_retries=5)
def clumsy(self: "Task[Any, Any]", how: str) -> None:
    if how == "retry":
        raise self.retry(("later",), countdown=3600, exc=ValueError("busy"))
    raise PermanentError("gone")


@shared_task(bind=True)
def does_not_throw(self: "Task[Any, Any]") -> str:
    if self.request.retries == 0:
        self.retry(countdown=0, throw=False)
    return "returned"


@shared_task(bind=True)
def sends(self: "Task[Any, Any]") -> None:
    plus.apply_async((1, 2), countdown=0)


@shared_task(ignore_result=True, expires=60)
def declared() -> None:
    pass


@shared_task(bind=True)
def says(self: "Task[Any, Any]", within: bool, how: str = "return") -> Any:
    """Return this run's result as other processes read it while it runs."""
    with transaction.atomic() if within else nullcontext():
        self.update_state(state="PROGRESS", meta={"done": "half \0"})
    if how == "ignore":
        meta = {"exc_type": "ValueError", "exc_message": ["odd"], "exc_module": "builtins"}
        self.update_state(state=states.FAILURE, meta=meta)
        raise Ignore
    seen: AsyncResult[Any] = AsyncResult(str(self.request.id))
    return [seen.state, seen.info]


def ends(how: str) -> Any:
    if how == "return":
        return how
    if how == "unserialisable":
        return object()
    raise {"ignore": Ignore, "reject": Reject, "fail": ValueError}[how](how)


ends_loudly = shared_task(bind=False, base=Job, name="test.loudly", max_attempts=1)(ends)
ends_quietly = shared_task(
    bind=False, base=Job, name="test.quietly", max_attempts=1, ignore_result=True
)(ends)


@pytest.fixture(autouse=True)
def client(redis_client: redis.Redis) -> Any:
    heard.clear()
    yield redis_client
    forget_tracers()


def of(task: Any, *args: Any, **columns: Any) -> Run:
    from scheduling.registry import encode

    return run(State.QUEUED, task=task.name, args=encode(args), **columns)


def fresh(made: Run) -> Run:
    return Run.objects.get(pk=made.pk)


class TestHandlersThatFail:
    def test_one_that_fails_with_its_job_makes_it_no_other_end(self) -> None:
        made = of(clumsy, "fail")
        hint(made)
        after = fresh(made)
        assert (after.state, after.failures) == (State.FAILED, 1)
        assert after.reason == "PermanentError: gone"
        with pytest.raises(PermanentError):
            AsyncResult(str(made.pk)).get(timeout=1)

    def test_one_that_fails_at_a_retry_takes_nothing_of_that_away(self) -> None:
        made = of(clumsy, "retry")
        hint(made)
        after = fresh(made)
        assert (after.state, after.args) == (State.SCHEDULED, '["later"]')
        assert after.run_at > clock.now() + timedelta(minutes=59)
        assert after.reason == "ValueError: busy"

    def test_in_eager_mode_it_is_heard(self) -> None:
        deliver(clumsy.name, str(uuid7()), ["fail"])
        with pytest.raises(KeyError):
            clumsy.apply(("fail",))


class TestTheOptionsOfARetry:
    def test_its_queue_is_honoured(self) -> None:
        made = of(again_with, {"queue": "slow"}, queue="fast")
        hint(made, delivery_info={"exchange": "", "routing_key": "fast", "priority": 6})
        assert fresh(made).queue == "slow"

    def test_without_one_it_stays_in_the_runs(self) -> None:
        made = of(again_with, {}, queue="fast")
        hint(made, delivery_info={"exchange": "", "routing_key": "celery", "priority": 0})
        assert (fresh(made).queue, fresh(made).priority) == ("fast", Priority.LOW)

    @pytest.mark.parametrize("asked", [Priority.FRONT, Priority.MEDIUM, Priority.LOW])
    def test_its_priority_is_honoured_in_place_of_a_step_down(self, asked: int) -> None:
        made = of(again_with, {"priority": asked, "countdown": 0})
        hint(made, delivery_info={"exchange": "", "routing_key": "celery", "priority": 6})
        assert fresh(made).priority == asked

    def test_its_limits_headers_and_expiry_are_honoured(self) -> None:
        options = {"time_limit": 9, "headers": {"tenant": "t2"}, "expires": 60, "countdown": 0}
        made = of(again_with, options, options='{"headers": {"tenant": "t1"}, "shadow": "s"}')
        hint(made)
        after = fresh(made)
        assert '"time_limit": 9' in after.options
        assert '"tenant": "t2"' in after.options
        assert '"shadow": "s"' in after.options
        assert after.expires_at is not None
        assert timedelta(seconds=55) < after.expires_at - clock.now() <= timedelta(seconds=60)

    def test_a_link_that_it_adds_is_carried(self) -> None:
        made = of(again_with, {"link": hear.s(), "countdown": 0})
        hint(made)
        work()
        assert heard == [("heard", "done")]

    def test_a_queue_that_may_not_be_made_fails_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        router: Any = current_app.amqp.router
        monkeypatch.setattr(router.queues, "create_missing", False)
        made = of(again_with, {"queue": "never heard of"})
        hint(made)
        after = fresh(made)
        assert after.state == State.FAILED
        assert "never heard of" in after.reason

    def test_a_retry_at_an_instant_that_is_over_may_start_at_once(self) -> None:
        made = of(again_with, {"eta": datetime(2020, 1, 1, tzinfo=UTC)})
        hint(made)
        work()
        assert fresh(made).state == State.SUCCEEDED


class TestRetries:
    def test_one_raised_in_a_transaction_is_kept_when_that_is_rolled_back(self) -> None:
        made = of(retries_within)
        hint(made)
        assert (fresh(made).state, fresh(made).attempt) == (State.SCHEDULED, 2)
        work()
        assert fresh(made).state == State.SUCCEEDED

    def test_one_that_the_job_swallows_is_made_all_the_same(self) -> None:
        made = of(retries_within, True)
        work()
        assert (fresh(made).state, fresh(made).attempt) == (State.SUCCEEDED, 2)
        assert AsyncResult(str(made.pk)).get(timeout=1) == "done"

    def test_one_that_is_not_thrown_is_made_all_the_same(self) -> None:
        made = of(does_not_throw)
        work()
        assert (fresh(made).state, fresh(made).attempt) == (State.SUCCEEDED, 2)

    def test_without_a_limit_it_goes_on(self) -> None:
        made = of(for_ever)
        for attempt in range(1, 11):
            hint(made, attempt)
        assert (fresh(made).state, fresh(made).failures) == (State.SCHEDULED, 10)

    @pytest.mark.parametrize(
        ("max_retries", "max_attempts", "attempts"),
        [(None, None, 2), (None, 5, 2), (3, None, 4), (3, 9, 4), (3, 2, 2), (0, 5, 1)],
    )
    def test_the_lower_of_both_limits_holds(
        self, max_retries: int | None, max_attempts: int | None, attempts: int
    ) -> None:
        made = of(once_more, max_retries, max_attempts=max_attempts)
        assert len(work()) == attempts
        assert (fresh(made).state, fresh(made).failures) == (State.FAILED, attempts)

    def test_autoretry_allows_what_the_jobs_own_retry_has_asked_for(self) -> None:
        made = of(asks_for_four)
        assert len(work()) == 5
        assert (fresh(made).state, fresh(made).failures) == (State.FAILED, 5)

    def test_a_permanent_error_is_not_tried_again_whatever_autoretry_is_for(self) -> None:
        made = of(for_good)
        hint(made)
        assert (fresh(made).state, fresh(made).reason) == (State.FAILED, "PermanentError: gone")

    def test_an_error_that_is_not_to_be_tried_again_is_not(self) -> None:
        never, again = of(not_for_this, "key"), of(not_for_this, "value")
        hint(never)
        hint(again)
        assert (fresh(never).state, fresh(again).state) == (State.FAILED, State.SCHEDULED)

    def test_autoretry_with_no_delay_is_tried_at_once_and_ends(self) -> None:
        made = of(at_once)
        assert len(work()) == 3
        assert (fresh(made).state, fresh(made).failures) == (State.FAILED, 3)
        with pytest.raises(KeyError):
            AsyncResult(str(made.pk)).get(timeout=1)


class TestEndings:
    @pytest.mark.parametrize(
        ("how", "state"),
        [
            ("return", State.SUCCEEDED),
            ("ignore", State.SUCCEEDED),
            ("reject", State.FAILED),
            ("fail", State.FAILED),
        ],
    )
    @pytest.mark.parametrize("task", [ends_loudly, ends_quietly])
    def test_a_result_that_is_ignored_changes_no_state(
        self, task: Any, how: str, state: State
    ) -> None:
        made = of(task, how)
        hint(made)
        after = fresh(made)
        assert after.state == state
        assert len(after.errors) == after.failures == (state == State.FAILED)

    def test_a_call_may_keep_what_its_task_ignores(self) -> None:
        promised = ends_quietly.apply_async(("return",), countdown=0, ignore_result=False)
        work()
        assert promised.get(timeout=1) == "return"

    def test_one_that_is_never_encoded_need_not_be_json(self) -> None:
        made = of(ends_quietly, "unserialisable")
        hint(made)
        assert fresh(made).state == State.SUCCEEDED

    def test_but_what_follows_it_must_be(self) -> None:
        promised = ends_quietly.apply_async(
            ("unserialisable",), countdown=0, link=hear.s(), link_error=told_id.s()
        )
        work()
        after = Run.objects.get(pk=promised.id)
        assert after.state == State.FAILED
        assert "not JSON" in after.reason
        assert heard == [("told", promised.id)]

    def test_a_rejected_run_ends_whoever_waits_for_it(self) -> None:
        made = of(ends_loudly, "reject")
        hint(made)
        assert AsyncResult(str(made.pk)).state == states.FAILURE


class TestStatesOfItsOwn:
    def test_they_can_be_read_while_it_runs(self) -> None:
        made = of(says, False)
        hint(made)
        promised: AsyncResult[Any] = AsyncResult(str(made.pk))
        assert promised.get(timeout=1) == ["PROGRESS", {"done": "half \0"}]
        assert TaskResult.objects.count() == 1

    def test_but_not_those_of_a_transaction(self) -> None:
        made = of(says, True)
        hint(made)
        assert AsyncResult(str(made.pk)).get(timeout=1) == [states.PENDING, None]

    def test_an_attempt_that_is_over_says_nothing_more(self) -> None:
        backend: Any = current_app.backend
        progress = backend.prepare({"done": 1}, "PROGRESS")
        lost, ended = run(State.RUNNING, attempt=2), run(State.RUNNING)
        finish(ended.pk, 1, failed("no", ValueError("no"), ended.task))
        Run.objects.filter(pk=ended.pk).update(state=State.RUNNING, finished_at=None)
        for made in (lost, ended):
            record_progress(made.pk, 1, progress)
        assert list(TaskResult.objects.values_list("task_id", "status")) == [
            (str(ended.pk), states.FAILURE)
        ]

    def test_one_that_says_it_has_failed_and_ends_with_ignore_has_failed(self) -> None:
        made = of(says, False, "ignore")
        hint(made)
        after = fresh(made)
        assert (after.state, after.failures, after.attempt) == (State.FAILED, 1, 1)
        assert "said that it had failed" in after.reason
        with pytest.raises(ValueError, match="odd"):
            AsyncResult(str(made.pk)).get(timeout=1)


class TestNamedCalls:
    def test_what_the_task_declares_holds_for_a_call_by_name(self) -> None:
        current_app.send_task(declared.name, countdown=5)
        made = Run.objects.get()
        assert (made.queue, made.priority) == ("celery", Priority.MEDIUM)
        assert made.expires_at is not None

    def test_what_the_call_says_goes_first(self) -> None:
        current_app.send_task(declared.name, countdown=5, queue="fast", priority=0)
        made = Run.objects.get()
        assert (made.queue, made.priority) == ("fast", Priority.FRONT)

    def test_a_call_from_inside_a_run_is_its_child(self) -> None:
        made = of(sends)
        hint(made)
        child = Run.objects.exclude(pk=made.pk).get()
        assert f'"parent_id": "{made.pk}"' in child.options
        assert f'"root_id": "{made.pk}"' in child.options
        promised: Any = AsyncResult(str(made.pk))
        assert [result.id for result in promised.children] == [str(child.pk)]


class TestEagerCalls:
    """`task_always_eager` is honoured first: no row, no message."""

    @pytest.mark.parametrize(
        ("canvas", "value"),
        [
            (plus.s(1, 2), 3),
            (chain(plus.s(1, 2), plus.s(10)), 13),
            (chord([plus.s(1, 1), plus.s(2, 2)], total.s()), 6),
            (again_with.s({"countdown": 60}), "done"),
        ],
    )
    def test_they_run_here_and_now(
        self, canvas: Any, value: Any, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(current_app.conf, "task_always_eager", True)
        assert canvas.apply_async(countdown=60).get() == value
        assert (Run.objects.count(), client.dbsize()) == (0, 0)

    def test_one_inside_a_run_is_no_part_of_it(self) -> None:
        made = of(outer)
        hint(made)
        assert AsyncResult(str(made.pk)).get(timeout=1) == [3, "done"]
        assert Run.objects.count() == 1


@shared_task
def outer() -> list[Any]:
    return [
        plus.apply((1, 2)).get(disable_sync_subtasks=False),
        again_with.apply(({"countdown": 60},)).get(disable_sync_subtasks=False),
    ]


class TestPlainMessages:
    def test_a_retry_with_options_becomes_a_run_with_them(self, client: redis.Redis) -> None:
        key = str(uuid7())
        deliver(again_with.name, key, args=({"queue": "slow", "priority": 0, "countdown": 9},))
        made = Run.objects.get(pk=key)
        assert (made.queue, made.priority) == ("slow", Priority.FRONT)
        assert made.run_at > clock.now() + SOON
        assert client.dbsize() == 0

    def test_a_part_of_a_plain_chord_that_retries_is_counted_when_it_ends(
        self, client: redis.Redis, settings: Settings
    ) -> None:
        settings.UNTRACKED_TASKS = [again_with.name, plus.name, total.name]
        body = total.s()
        promised = chord([again_with.s({"countdown": 0}), plus.s(1, 1)], body).apply_async()
        first, second = (value_in(client) for _ in range(2))
        for headers, embedded in (first, second):
            deliver(
                headers["task"], headers["id"], args=embedded[0], chord=embedded[2]["chord"],
                group=headers["group"], group_index=headers["group_index"],
            )  # fmt: skip
        assert Run.objects.count() == 1
        work()
        assert TaskResult.objects.filter(task_id=promised.id).count() <= 1
        assert Run.objects.get(pk=promised.id).args == '[["done", 2]]'


def value_in(client: redis.Redis) -> tuple[Any, Any]:
    """Take the next plain message out of the queue; return its headers and its body."""
    import base64
    import json

    raw: Any = client.rpop("celery\x06\x166")
    message = json.loads(raw)
    return message["headers"], json.loads(base64.b64decode(message["body"]))
