"""Celery's own faces: a call of a task is a row, unless UNTRACKED_TASKS names the task."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import psycopg
import pytest
import redis
from celery import chain, chord, current_app, group, signals
from celery._state import _task_stack  # type: ignore[attr-defined]
from celery.fixups import django as fixups
from celery.result import AsyncResult, GroupResult
from django.conf import settings as django_settings
from django.db import OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext
from kombu import Queue
from kombu.utils.json import loads
from pytest_django import DjangoCaptureOnCommitCallbacks as Capture
from pytest_django import Settings

from scheduling import clock
from scheduling.celery_app.app import forget_lost_connection
from scheduling.errors import EnqueueError
from scheduling.ids import uuid7
from scheduling.models import Origin, Priority, Run, State
from tests.jobs.tasks import add, write
from tests.scheduling.ledger import ADD, run, second_connection
from tests.waiting import wait_for

LATER = datetime(2099, 1, 1, tzinfo=UTC)

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def client(redis_client: redis.Redis) -> redis.Redis:
    return redis_client


def only_run() -> Run:
    return Run.objects.get()


class TestForLater:
    def test_a_countdown_is_a_row_and_reaches_no_broker(self, client: redis.Redis) -> None:
        promised = add.apply_async((1, 2), countdown=90)
        made = only_run()
        assert promised.id == str(made.pk)
        assert (made.task, made.args, made.origin, made.state) == (
            ADD, "[1, 2]", Origin.ADHOC, State.SCHEDULED,
        )  # fmt: skip
        assert timedelta(seconds=85) < made.run_at - clock.now() <= timedelta(seconds=90)
        assert client.dbsize() == 0

    @pytest.mark.parametrize(
        "eta",
        [LATER, LATER.isoformat(), LATER.replace(tzinfo=None),
         datetime.fromisoformat("2099-01-01T05:30:00+05:30")],
    )  # fmt: skip
    def test_an_eta_is_a_row_naive_ones_in_utc_as_celery_reads_them(self, eta: Any) -> None:
        add.apply_async((1, 2), eta=eta)
        assert only_run().run_at == LATER

    def test_its_options_are_kept(self) -> None:
        key = str(uuid7())
        add.apply_async(
            (1,), {"y": 2}, countdown=1, task_id=key, queue="q", priority=0, expires=60,
            time_limit=9, soft_time_limit=8, headers={"t": "1"},
        )  # fmt: skip
        made = only_run()
        assert (str(made.pk), made.queue, made.priority) == (key, "q", Priority.FRONT)
        assert made.expires_at is not None
        assert made.expires_at - made.created_at == pytest.approx(
            timedelta(seconds=60), abs=timedelta(seconds=1)
        )
        assert '"time_limit": 9' in made.options
        assert '"soft_time_limit": 8' in made.options

    @pytest.mark.parametrize("delay", [{}, {"countdown": 1}])
    def test_a_unique_key_is_refused_not_ignored(self, delay: dict[str, Any]) -> None:
        with pytest.raises(EnqueueError, match="unique_key is an option of"):
            add.apply_async((1, 2), **{"unique_key": "k", **delay})
        assert not Run.objects.exists()

    def test_a_task_that_this_process_does_not_know_is_a_row_too(self) -> None:
        promised = current_app.send_task("elsewhere.task", (1,), {"a": 2}, countdown=5)
        assert (only_run().task, str(only_run().pk)) == ("elsewhere.task", promised.id)

    def test_a_signature_with_a_countdown_is_a_row(self) -> None:
        add.s(1, 2).set(countdown=5).apply_async()
        assert only_run().args == "[1, 2]"

    def test_a_countdown_that_is_over_already_may_start_at_once(self) -> None:
        add.apply_async((1, 2), countdown=-3)
        assert only_run().run_at <= clock.now()

    def test_an_expiry_that_is_over_already_is_now_as_celery_takes_it(self) -> None:
        add.apply_async((1, 2), countdown=3, expires=-3)
        made = only_run()
        assert made.expires_at is not None
        assert made.expires_at <= clock.now()

    @pytest.mark.parametrize(
        ("send", "rows"),
        [
            (lambda: add.apply_async((1, 2), countdown=5, link=add.s(1)), 1),
            (lambda: add.apply_async((1, 2), countdown=5, link_error=add.s(1)), 1),
            (lambda: chain(add.s(1, 2), add.s(3)).apply_async(countdown=5), 1),
            (lambda: group(add.s(1, 2), add.s(3, 4)).apply_async(countdown=5), 2),
            (lambda: chord([add.s(1, 2), add.s(3, 4)], add.s(1)).apply_async(countdown=5), 2),
        ],
    )
    def test_a_canvas_is_rows_and_reaches_no_broker(
        self, send: Any, rows: int, client: redis.Redis
    ) -> None:
        send()
        assert (Run.objects.count(), client.dbsize()) == (rows, 0)
        assert all(made.run_at > clock.now() for made in Run.objects.all())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"task_id": "mine"}, "not a UUID|is not a UUID"),
            ({"eta": "tomorrow"}, "not an ISO 8601 time"),
            ({"args": (1, object())}, "not JSON"),
        ],
    )
    def test_what_cannot_be_written_is_refused(self, options: Any, message: str) -> None:
        call: dict[str, Any] = {"args": (1, 2), "countdown": 5, **options}
        with pytest.raises(EnqueueError, match=message):
            add.apply_async(**call)

    def test_an_id_twice_is_refused(self) -> None:
        key = str(uuid7())
        add.apply_async((1, 2), countdown=5, task_id=key)
        with pytest.raises(EnqueueError, match="there is a run with the id"):
            add.apply_async((1, 2), countdown=5, task_id=key)

    def test_a_priority_below_the_highest_is_the_highest(self) -> None:
        add.apply_async((1, 2), countdown=5, priority=-1)
        assert only_run().priority == Priority.FRONT


class TestRevoke:
    def test_a_run_that_waits_is_cancelled(self) -> None:
        promised: Any = add.apply_async((1, 2), countdown=60)
        promised.revoke()
        made = Run.objects.get()
        assert (made.state, made.reason) == (State.CANCELLED, "cancelled by revoke")
        assert promised.state == "REVOKED"

    def test_one_that_runs_is_only_where_it_shall_be_terminated(self) -> None:
        made = run(State.RUNNING)
        promised: AsyncResult[Any] = AsyncResult(str(made.pk))
        promised.revoke()
        assert Run.objects.get().cancel_requested_by == ""
        promised.revoke(terminate=True)
        assert (Run.objects.get().state, Run.objects.get().cancel_requested_by) == (
            State.RUNNING, "revoke",
        )  # fmt: skip

    @pytest.mark.parametrize(
        "headers", [{"tenant": "a"}, {"tenant": ["x", "a"], "no": "b"}, ["tenant=a"]], ids=str
    )
    def test_runs_with_a_stamp_are_cancelled_and_no_others(self, headers: Any) -> None:
        def stamped(tenant: Any) -> Any:
            call: Any = add.si(1, 2)
            call.stamp(tenant=tenant)
            return call.apply_async(countdown=60)

        one, several, other = stamped("a"), stamped(["a", "b"]), stamped("c")
        plain: Any = add.apply_async((1, 2), countdown=60)
        odd = run(options='{"stamps": 7}')
        running = run(State.RUNNING, options='{"stamps": {"tenant": "a"}}')
        current_app.control.revoke_by_stamped_headers(headers)
        ended = Run.objects.filter(state=State.CANCELLED).values_list("pk", flat=True)
        assert set(map(str, ended)) == {one.id, several.id}
        current_app.control.revoke_by_stamped_headers(headers, terminate=True)
        asked = Run.objects.exclude(cancel_requested_by="").get()
        assert asked.pk == running.pk
        assert {made.state for made in Run.objects.exclude(pk__in=ended)} == {
            State.SCHEDULED, State.RUNNING
        }, (other, plain, odd)  # fmt: skip

    def test_what_is_no_run_is_celerys(self) -> None:
        made = run(State.SUCCEEDED)
        parts: list[AsyncResult[Any]] = [
            AsyncResult(one) for one in (str(made.pk), str(uuid7()), "mine")
        ]
        GroupResult("g", parts).revoke(terminate=True)
        assert Run.objects.get().state == State.SUCCEEDED


def plain(client: redis.Redis) -> int:
    return sum(int(client.llen(key)) for key in ("celery", "celery\x06\x166"))


class TestForNow:
    def test_a_delay_is_a_row_and_reaches_no_broker(self, client: redis.Redis) -> None:
        promised = add.delay(1, 2)
        made = only_run()
        assert promised.id == str(made.pk)
        assert (made.task, made.args, made.kwargs, made.origin, made.state, made.queue) == (
            ADD, "[1, 2]", "{}", Origin.ADHOC, State.SCHEDULED, "celery",
        )  # fmt: skip
        assert made.run_at <= clock.now()
        assert client.dbsize() == 0

    @pytest.mark.parametrize(
        "send",
        [lambda: add.delay(1, 2), lambda: add.apply_async((1, 2)), lambda: add.s(1, 2).delay(),
         lambda: add.s(1, 2)(), lambda: current_app.send_task(ADD, (1, 2))],
    )  # fmt: skip
    def test_it_is_there_if_and_only_if_the_callers_transaction_commits(self, send: Any) -> None:
        if send() == 3:  # a signature that is called is run here
            assert not Run.objects.exists()
            return
        assert only_run().args == "[1, 2]"
        with transaction.atomic():
            send()
            assert Run.objects.count() == 2
            transaction.set_rollback(True)
        assert Run.objects.count() == 1

    @pytest.mark.parametrize(
        ("send", "rows"),
        [
            (lambda: chain(add.s(1, 2), add.s(3)).delay(), 1),
            (lambda: group(add.s(1, 2), add.s(3, 4)).delay(), 2),
            (lambda: chord([add.s(1, 2), add.s(3, 4)], add.s(1)).delay(), 2),
            (lambda: add.map([(1, 2), (3, 4)]).delay(), 1),
            (lambda: add.starmap([(1, 2), (3, 4)]).delay(), 1),
            (lambda: add.chunks([(1, 2), (3, 4), (5, 6)], 2).apply_async(), 2),
        ],
    )
    def test_a_canvas_is_rows_and_reaches_no_broker(
        self, send: Any, rows: int, client: redis.Redis
    ) -> None:
        send()
        assert (Run.objects.count(), client.dbsize()) == (rows, 0)

    def test_what_celery_documents_of_a_call_is_kept(self) -> None:
        class Mine(AsyncResult[Any]):
            pass

        key, queue = uuid7(), cast("str", Queue("q"))  # which Celery takes too
        promised = current_app.send_task(
            ADD, (1,), {"y": 2}, task_id=key.hex, queue=queue, priority=9, expires=60,
            time_limit=9, soft_time_limit=8, headers={"t": "1"}, shadow="sum", ignore_result=True,
            result_cls=Mine, serializer="pickle", compression="gzip", retry=False,
            retry_policy={"max_retries": 1}, delivery_mode=1, add_to_parent=False,
            link=add.s(1), link_error=add.s(2),
        )  # fmt: skip
        made = only_run()
        assert (type(promised), promised.id, promised.ignored) == (Mine, str(key), True)
        assert (made.pk, made.queue, made.priority) == (key, "q", Priority.LOW)
        assert loads(made.options) == {
            "time_limit": 9, "soft_time_limit": 8, "headers": {"t": "1"}, "shadow": "sum",
            "ignore_result": True,
        }  # fmt: skip
        assert loads(made.follow_ups).keys() == {"link", "link_error"}
        assert made.expires_at is not None

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"task_id": "mine"}, "is not a UUID.*or name the task in UNTRACKED_TASKS"),
            ({"args": (1, object())}, "not JSON"),
        ],
    )
    def test_what_cannot_be_written_is_refused(self, options: Any, message: str) -> None:
        with pytest.raises(EnqueueError, match=message):
            add.apply_async(**{"args": (1, 2), **options})

    @pytest.mark.parametrize("name", ["", "x" * 201, "nul\0"])
    def test_a_name_that_no_row_can_hold_spoils_no_transaction(self, name: str) -> None:
        with pytest.raises(EnqueueError, match="task must have 1 to 200 characters"):
            current_app.send_task(name)
        assert not Run.objects.exists()

    def test_a_call_in_a_transaction_that_is_broken_is_djangos_error(self) -> None:
        with transaction.atomic():
            transaction.set_rollback(True)
            with pytest.raises(transaction.TransactionManagementError):
                add.delay(1, 2)
            transaction.set_rollback(False)

    def test_a_call_inside_of_a_task_names_its_family(self) -> None:
        parent = run(State.RUNNING)
        with _inside(add, id=str(parent.pk), root_id="r"):
            promised = add.delay(1, 2)
            assert list(map(str, add.request.children)) == [promised.id]
        made = Run.objects.get(pk=promised.id)
        kept = {"root_id": "r", "parent_id": str(parent.pk)}
        assert loads(made.options) == kept

    def test_a_part_inherits_the_priority_of_its_parent_where_celery_is_told_so(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(current_app.conf, "task_inherit_parent_priority", True)
        with _inside(add, id=str(uuid7()), delivery_info={"priority": 3}):
            current_app.send_task("elsewhere.task")
            current_app.send_task("elsewhere.task", priority=9)
        assert [made.priority for made in Run.objects.order_by("pk")] == [
            Priority.HIGH, Priority.LOW,
        ]  # fmt: skip

    def test_in_a_loop_a_call_costs_one_statement(self) -> None:
        add.delay(1, 2)
        with CaptureQueriesContext(connection) as statements:
            for _ in range(3):
                add.delay(1, 2)
        assert len(statements) == 0, "all are prepared, and pass by Django's cursor"
        assert Run.objects.count() == 4


@contextmanager
def _inside(task: Any, **request: Any) -> Iterator[None]:
    """As if this thread were in the body of `task`, as Celery sees it."""
    task.push_request(children=[], called_directly=False, **request)
    _task_stack.push(task)
    try:
        yield
    finally:
        _task_stack.pop()
        task.pop_request()


class TestSignals:
    """Those of a message that is published are sent for a run that is written."""

    def test_headers_and_arguments_that_a_receiver_changes_are_the_runs(self) -> None:
        seen: list[Any] = []

        def before(sender: Any, body: Any, headers: Any, **more: Any) -> None:
            seen.append((sender, body, headers["id"], headers["task"], more["routing_key"]))
            headers["trace"] = "abc"
            body[1]["y"] = 5

        def after(sender: Any, headers: Any, **more: Any) -> None:
            seen.append((sender, headers["trace"], Run.objects.count()))

        signals.before_task_publish.connect(before)
        signals.after_task_publish.connect(after)
        try:
            promised = add.apply_async((1,), {"y": 2}, queue="q", headers={"tenant": "t"})
        finally:
            signals.before_task_publish.disconnect(before)
            signals.after_task_publish.disconnect(after)
        made = only_run()
        assert loads(made.options)["headers"] == {"tenant": "t", "trace": "abc"}
        assert (str(made.pk), made.args, loads(made.kwargs)) == (promised.id, "[1]", {"y": 5})
        assert seen[0][0] == seen[0][3] == ADD
        assert seen[0][2:] == (promised.id, ADD, "q")
        assert seen[1:] == [(ADD, "abc", 1)]

    def test_the_event_that_a_task_was_sent_goes_out_on_commit_where_celery_is_told_so(
        self,
        client: redis.Redis,
        monkeypatch: pytest.MonkeyPatch,
        django_capture_on_commit_callbacks: Capture,
    ) -> None:
        monkeypatch.setitem(current_app.conf, "task_send_sent_event", True)
        heard: list[Any] = []
        with current_app.connection_for_read() as connection:
            receiver = current_app.events.Receiver(connection, {"task-sent": heard.append})
            with receiver.consumer_context() as (own, _, _):
                _drained(own)  # subscribes
                with django_capture_on_commit_callbacks(execute=True):
                    promised = add.apply_async((1, 2), queue="q")
                wait_for(lambda: _drained(own) and heard)
        assert (heard[0]["uuid"], heard[0]["name"], heard[0]["queue"]) == (promised.id, ADD, "q")


def _drained(connection: Any) -> bool:
    with suppress(OSError):
        connection.drain_events(timeout=0.1)
    return True


class TestUntracked:
    """Tasks whose calls stay plain messages."""

    @pytest.fixture(autouse=True)
    def named(self, settings: Settings) -> None:
        settings.UNTRACKED_TASKS = ["elsewhere.*", ADD]

    @pytest.mark.parametrize(
        "send",
        [
            lambda: add.delay(1, 2),
            lambda: add.apply_async((1, 2), task_id="any id"),
            lambda: current_app.send_task("elsewhere.task"),
            lambda: chain(add.s(1, 2), add.s(3)).delay(),
            lambda: chord([add.s(1, 2)], add.s(3)).apply_async(),
        ],
    )
    def test_a_call_is_a_plain_message(self, send: Any, client: redis.Redis) -> None:
        send()
        assert (Run.objects.count(), plain(client)) == (0, 1)

    @pytest.mark.parametrize(
        "send",
        [
            lambda: add.apply_async((1, 2), countdown=1),
            lambda: add.apply_async((1, 2), link=write.s("p")),
            lambda: add.apply_async((1, 2), link_error=chain(add.s(1), write.s("p"))),
            lambda: chain(add.s(1, 2), add.s(3), write.s("p")).delay(),
            lambda: chord([add.s(1, 2)], write.s("p")).apply_async(),
            lambda: current_app.send_task("elsewhere"),
        ],
    )
    def test_one_with_a_delay_or_that_sets_off_other_tasks_is_a_row(
        self, send: Any, client: redis.Redis
    ) -> None:
        send()
        assert (Run.objects.count(), plain(client)) == (1, 0)


class TestEager:
    def test_delay_on_commit_is_there(self) -> None:
        assert callable(getattr(add, "delay_on_commit", None))

    def test_an_eager_call_runs_here_and_now_whatever_its_countdown(
        self, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(current_app.conf, "task_always_eager", True)
        assert add.apply_async((1, 2), countdown=60).get() == 3
        assert add.delay(3, 4).get() == 7
        assert (Run.objects.count(), client.dbsize()) == (0, 0)


class TestTheSettings:
    def test_database_connections_are_kept_across_tasks(self) -> None:
        """Celery's Django fix-up closes them around each one otherwise: 7.5 ms in place of 0.45."""
        worker_fixup: Any = vars(fixups)["DjangoWorkerFixup"]
        reuse = worker_fixup(current_app).db_reuse_max
        assert reuse == django_settings.CELERY_DB_REUSE_MAX
        assert reuse > 10**15

    def test_hints_wait_in_redis_by_priority_and_nowhere_else(self) -> None:
        conf = current_app.conf
        assert conf.broker_transport_options["queue_order_strategy"] == "priority"
        assert conf.broker_transport_options["priority_steps"] == [step.value for step in Priority]
        assert conf.task_default_priority == Priority.MEDIUM
        assert (conf.worker_prefetch_multiplier, conf.worker_disable_prefetch) == (1, True)

    def test_every_task_of_the_app_is_a_job(self, settings: Settings) -> None:
        assert current_app.task_cls == "scheduling.jobs:Job"
        assert settings.CELERY_RESULT_BACKEND == "scheduling.celery_app.results:Backend"


@pytest.mark.django_db(transaction=True)
def test_a_new_child_forgets_a_connection_that_its_parent_has_lost() -> None:
    raw: Any = connection.cursor().connection
    with second_connection() as other:
        other.execute("SELECT pg_terminate_backend(%s)", [raw.info.backend_pid])
    with pytest.raises(OperationalError):
        connection.cursor().execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):  # as Celery would call it
        raw.fileno()
    forget_lost_connection()
    assert connection.connection is None
    assert clock.now()
    kept = connection.connection
    forget_lost_connection()
    assert connection.connection is kept
