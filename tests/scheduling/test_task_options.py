"""A run goes where `.delay()` would put the same call, for every way in which a run is made."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from celery import Celery, chain, current_app, shared_task
from django.db import connection
from kombu import Exchange, Queue, binding

from scheduling import clock
from scheduling.admin.schedules.form import ScheduleForm
from scheduling.base_job import known_task
from scheduling.beat import firing
from scheduling.errors import EnqueueError
from scheduling.history import backfilling, replaying
from scheduling.jobs import Call, enqueue, enqueue_many
from scheduling.models import Priority, Run, State
from scheduling.runs.scheduled_calls import run_now
from scheduling.schedules import from_code
from scheduling.task_options import CallOptions, options_of, routed_by_arguments
from tests.scheduling.ledger import (
    ADD,
    LONG_AGO,
    WRITE,
    crontab,
    plan_of,
    runs_of,
    schedule,
    set_plan,
)

SIZES = Exchange("sizes")
MEDIA = Exchange("media", type="topic")
QUEUES = (
    Queue("celery", Exchange("celery"), routing_key="celery"),
    Queue("video", MEDIA, routing_key="media.video.#"),
    Queue("image", MEDIA, routing_key="media.image.*"),
    Queue("all", MEDIA, routing_key="#"),
    Queue("small", Exchange("sizes"), routing_key="small"),
    Queue("big", bindings=[binding(SIZES, "big"), binding(SIZES, "huge")]),
    Queue("everyone", Exchange("news", type="fanout")),
)


@shared_task(expires=3)
def soon_useless(x: int = 0, y: int = 0) -> None: ...


@pytest.fixture
def routes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set CELERY_TASK_ROUTES and CELERY_TASK_QUEUES for this test."""
    amqp: Any = current_app.amqp

    def set_them(routes: Any = None, queues: Any = QUEUES) -> None:
        for name, value in (("task_routes", routes), ("task_queues", queues)):
            changes: Any = current_app.conf.changes
            monkeypatch.setitem(changes, name, value)
        monkeypatch.setitem(amqp.__dict__, "queues", amqp.Queues(queues))
        monkeypatch.setattr(amqp, "_rtable", None)
        monkeypatch.setitem(amqp.__dict__, "router", amqp.Router())
        monkeypatch.delitem(amqp.__dict__, "default_queue", raising=False)
        monkeypatch.delitem(amqp.__dict__, "send_task_message", raising=False)

    return set_them


def by_tenant(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **_: Any) -> Any:
    """Route by the arguments of the call, as projects with many customers do."""
    tenant = kwargs.get("y", args[1] if len(args) > 1 else None)
    if tenant == 13:
        raise LookupError("no such tenant")
    return {"queue": f"tenant-{tenant}"} if tenant else None


ROUTES: list[tuple[Any, dict[str, Any]]] = [
    (None, {}),
    (None, {"queue": "video"}),
    (None, {"queue": "new"}),
    (None, {"exchange": "sizes", "routing_key": "small"}),
    (None, {"exchange": "sizes", "routing_key": "huge"}),
    (None, {"exchange": Exchange("sizes"), "routing_key": "big"}),
    (None, {"queue": "image", "exchange": "sizes", "routing_key": "small"}),
    (None, {"exchange": "celery", "routing_key": "celery"}),
    (None, {"routing_key": "small"}),
    (None, {"exchange": "sizes"}),
    (None, {"priority": 3}),
    ({ADD: {"queue": "small", "priority": 9}}, {}),
    ({ADD: "small"}, {"queue": "big"}),
    ({"tests.*": {"exchange": "sizes", "routing_key": "big"}}, {}),
    ([[("tests.jobs.*", {"queue": "big", "routing_key": "huge"})]], {}),
    (by_tenant, {}),
    ([lambda *_, **__: None, by_tenant], {}),
    ("tests.scheduling.test_task_options.by_tenant", {}),
]


class TestAsCelerySends:
    @pytest.mark.parametrize(("table", "asked"), ROUTES)
    def test_a_call_goes_where_celery_delivers_its_message(
        self, routes: Callable[..., None], redis_client: redis.Redis, table: Any, asked: Any
    ) -> None:
        routes(table)
        found = options_of(ADD, (1, 2), {}, asked)
        with current_app.connection_for_write() as broker:
            for queue in current_app.amqp.queues.values():
                queue(broker.default_channel).declare()
            task: Any = known_task(ADD)
            options = {**task._get_exec_options(), **asked}
            # Celery's own, past the ledger.
            Celery.send_task(current_app, ADD, (1, 2), {}, task_type=task, **options)
        lists = {
            key.decode().split("\x06")[0]
            for key in redis_client.scan_iter()
            if redis_client.type(key) == b"list"
        }
        assert found.queue in lists
        assert lists - {found.queue} <= {"all"}  # the copy that a run is too many for
        key = f"{found.queue}\x06\x16{found.priority}" if found.priority else found.queue
        assert redis_client.llen(key) == 1


class TestExchanges:
    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            ({"exchange": "sizes", "routing_key": "tiny"}, "'tiny', to which .* bind no queue"),
            ({"exchange": "nowhere", "routing_key": "x"}, "'nowhere' .* bind no queue"),
            ({"exchange": "media", "routing_key": "media.video.x"}, r"2 queues \(all, video\)"),
            ({"queue": "everyone"}, "'news', a fanout, which delivers to every worker"),
            ({"exchange": "news", "routing_key": "x"}, "'news', a fanout"),
            ({"queue": ["video"]}, "must be names"),
            ({"queue": 5}, "queue must have 1 to 200 characters"),
        ],
    )
    def test_a_call_that_no_single_queue_takes_is_refused(
        self, routes: Callable[..., None], asked: dict[str, Any], message: str
    ) -> None:
        routes()
        with pytest.raises(EnqueueError, match=message):
            options_of(ADD, (1, 2), {}, asked)

    def test_of_several_queues_the_one_that_is_named_takes_it(
        self, routes: Callable[..., None]
    ) -> None:
        routes()
        asked = {"queue": "video", "exchange": "media", "routing_key": "media.video.x"}
        assert options_of(ADD, (1, 2), {}, asked).queue == "video"

    def test_a_queue_that_may_not_be_made_is_refused(
        self, routes: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        routes()
        monkeypatch.setattr(current_app.amqp.queues, "create_missing", False)
        with pytest.raises(EnqueueError, match="unknown queue 'new'"):
            options_of(ADD, (1, 2), {}, {"queue": "new"})


class TestRouters:
    def test_tables_are_asked_once_for_each_task(self, routes: Callable[..., None]) -> None:
        routes({ADD: "small"})
        assert not routed_by_arguments()
        routes([{ADD: "small"}, by_tenant])
        assert routed_by_arguments()

    def test_one_that_fails_is_named(self, routes: Callable[..., None]) -> None:
        routes(by_tenant)
        with pytest.raises(
            EnqueueError, match=f"router of task {ADD} failed: LookupError: no such"
        ):
            options_of(ADD, (1, 13))

    def test_it_sees_what_celery_shows_it(self, routes: Callable[..., None]) -> None:
        seen: list[Any] = []

        def router(*args: Any, **kwargs: Any) -> None:
            seen.append((args, kwargs))

        routes(router)
        asked = {"queue": "small", "headers": {"a": 1}, "task_id": "x", "link": None}
        options_of(ADD, [1], {"y": 2}, asked)
        ((name, args, kwargs, options), named) = seen[0]
        assert (name, args, kwargs, named["task"].name) == (ADD, (1,), {"y": 2}, ADD)
        assert options["queue"].name == "small"
        assert options["headers"] == {"a": 1}
        assert not options.keys() & {"task_id", "link", "expires", "time_limit"}


class TestOwnOptions:
    def test_a_tasks_own_options_count(
        self, routes: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        routes()
        task: Any = known_task(soon_useless.name)
        assert options_of(task.name) == CallOptions("celery", Priority.MEDIUM, timedelta(seconds=3))
        own = {**task._get_exec_options(), "priority": 0, "exchange": "sizes", "routing_key": "big"}
        monkeypatch.setattr(task, "_exec_options", own)
        assert options_of(task.name)[:2] == ("big", 0)
        assert options_of(task.name, (), {}, {"priority": 9, "expires": None}) == ("big", 9, None)

    def test_an_instant_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        task: Any = known_task(soon_useless.name)
        at = datetime(2027, 1, 1, tzinfo=UTC)
        monkeypatch.setattr(task, "_exec_options", {**task._get_exec_options(), "expires": at})
        assert options_of(task.name).expires == at


@pytest.fixture
def due(db: None) -> Callable[..., Any]:
    """Write a due schedule, and let beat fire it."""

    def fire(name: str = "nightly", **columns: Any) -> list[Run]:
        row = schedule(name, **columns)
        set_plan(row, clock.now() - timedelta(seconds=1))
        firing.fire_due(LONG_AGO)
        return runs_of(row)

    return fire


WAYS = [
    "schedule", "enqueue", "enqueue_many", "countdown", "by name", "link", "chain", "run now",
    "backfill", "from code", "replay", "replay in bulk",
]  # fmt: skip


def made(way: str, settings: Any, task: Any = None) -> Run:
    """Make a run of task(1, y=7) in one of all ways; return it."""
    task = task or known_task(ADD)
    call: dict[str, Any] = {"args": [1], "kwargs": {"y": 7}}
    columns = {"task": task.name, "args": "[1]", "kwargs": '{"y": 7}'}
    if way == "enqueue":
        return enqueue(task, (1,), {"y": 7})
    if way == "enqueue_many":
        enqueue_many(task, [Call((1,), {"y": 7})])
    elif way == "countdown":
        task.apply_async(**call, countdown=5)
    elif way == "by name":
        current_app.send_task(task.name, **call, countdown=5)
    elif way in ("link", "chain"):
        after(way, task)
    elif way == "run now":
        return run_now(schedule(**columns), by="ann")
    elif way == "schedule":
        row = schedule(**columns)
        set_plan(row, clock.now() - timedelta(milliseconds=10))
        firing.fire_due(LONG_AGO)
    elif way == "backfill":
        row = schedule(**columns, crontab=crontab())
        since = clock.now() - timedelta(minutes=3)
        backfilling.start(row, since, clock.now() - timedelta(minutes=1), by="ann")
    elif way == "from code":
        settings.CELERY_BEAT_SCHEDULE = {"e": {"task": task.name, "schedule": 5, **call}}
        from_code.sync()
        from scheduling.models import Schedule

        return run_now(Schedule.objects.get(name="e"), by="ann")
    elif way == "replay":
        old = enqueue(task, (1,), {"y": 7})
        Run.objects.filter(pk=old.pk).update(state=State.SUCCEEDED, finished_at=clock.now())
        return replaying.replay(old.pk, by="ann")
    elif way == "replay in bulk":
        old = enqueue(task, (1,), {"y": 7})
        Run.objects.filter(pk=old.pk).update(state=State.SUCCEEDED, finished_at=clock.now())
        replaying.replay_all(Run.objects.all(), by="ann", limit=9)
    found: Run = Run.objects.filter(task=task.name).exclude(state=State.SUCCEEDED).latest("pk")
    return found


def after(way: str, task: Any) -> None:
    """End a run that is followed by task(1, y=7)."""
    from scheduling.execution.finishing import finish
    from scheduling.runs.outcomes import Outcome

    first = known_task(WRITE)
    following = task.si(1, y=7)
    if way == "link":
        leading = enqueue(first, ("/dev/null",), link=following)
    else:
        result: Any = chain(first.s("/dev/null"), following).apply_async(countdown=0.01)
        leading = Run.objects.get(pk=result.parent.id)
    Run.objects.filter(pk=leading.pk).update(
        state=State.RUNNING, worker="w1", started_at=clock.now(),
        lease_expires_at=clock.now() + timedelta(seconds=30),
    )  # fmt: skip
    assert finish(leading.pk, 1, Outcome(State.SUCCEEDED, value="", followed=True))


@pytest.mark.django_db
class TestEveryWay:
    @pytest.mark.parametrize("way", WAYS)
    def test_the_arguments_decide_on_the_queue(
        self, routes: Callable[..., None], settings: Any, way: str
    ) -> None:
        routes(by_tenant)
        assert made(way, settings).queue == "tenant-7"

    @pytest.mark.parametrize("way", WAYS)
    def test_a_routes_exchange_finds_its_queue(
        self, routes: Callable[..., None], settings: Any, way: str
    ) -> None:
        routes({ADD: {"exchange": "sizes", "routing_key": "huge"}})
        assert made(way, settings).queue == "big"

    @pytest.mark.parametrize("way", WAYS)
    def test_a_tasks_own_expiry_counts(self, settings: Any, way: str) -> None:
        before = clock.now()
        found = made(way, settings, soon_useless)
        if way == "backfill":  # its instants have passed long ago
            assert found.expires_at is None
            return
        assert found.expires_at is not None
        begun = found.due_at if way == "schedule" else before
        assert (
            begun + timedelta(seconds=3) <= found.expires_at <= clock.now() + timedelta(seconds=3)
        )

    def test_a_schedules_own_expiry_goes_before_the_tasks(self, due: Callable[..., Any]) -> None:
        (only,) = due(task=soon_useless.name, expire_seconds=60)
        assert only.expires_at == only.due_at + timedelta(seconds=60)

    def test_many_calls_go_each_to_its_own_queue(self, routes: Callable[..., None]) -> None:
        routes(by_tenant)
        calls = [Call((1, number % 3 + 1)) for number in range(9)]
        assert enqueue_many(known_task(ADD), calls) == 9
        for number in (1, 2, 3):
            assert Run.objects.filter(queue=f"tenant-{number}", args=f"[1, {number}]").count() == 3


@pytest.mark.django_db
class TestFiring:
    def test_a_batch_goes_by_its_arguments_and_stops_for_none(
        self, routes: Callable[..., None]
    ) -> None:
        routes(by_tenant)
        rows = dict[Any, int]()
        for number in (1, 2, 2, 13):
            row = schedule(f"s{len(rows)}", args=f"[1, {number}]")
            set_plan(row, clock.now() - timedelta(seconds=1))
            rows[row] = number
        firing.fire_due(LONG_AGO)
        for row, number in rows.items():
            (only,) = runs_of(row)
            if number == 13:
                assert only.state == State.SKIPPED
                assert "LookupError: no such tenant" in plan_of(row).error
            else:
                assert (only.state, only.queue) == (State.SCHEDULED, f"tenant-{number}")

    def test_a_router_that_spoils_the_transaction_stops_its_own_schedule_alone(
        self, routes: Callable[..., None]
    ) -> None:
        def router(name: str, args: Any, *_: Any, **__: Any) -> Any:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 / %s", [args[1]])
            return {"queue": "looked-up"}

        routes(router)
        rows = [schedule(f"s{number}", args=f"[1, {number}]") for number in (0, 1)]
        for row in rows:
            set_plan(row, clock.now() - timedelta(seconds=1))
        firing.fire_due(LONG_AGO)
        assert "division by zero" in plan_of(rows[0]).error
        assert [one.queue for one in runs_of(rows[1])] == ["looked-up"]

    def test_a_function_is_asked_once_for_calls_that_are_alike(
        self, routes: Callable[..., None]
    ) -> None:
        asked: list[Any] = []
        routes(lambda name, args, *_, **__: asked.append(args))
        for number in range(6):
            row = schedule(f"s{number}", args=f"[1, {number % 2}]")
            set_plan(row, clock.now() - timedelta(seconds=1))
        firing.fire_due(LONG_AGO)
        assert Run.objects.count() == 6
        assert sorted(asked) == [(1, 0), (1, 1)]

    def test_a_rows_exchange_and_routing_key_find_its_queue(
        self, routes: Callable[..., None], due: Callable[..., Any]
    ) -> None:
        routes()
        (only,) = due(exchange="sizes", routing_key="small")
        assert only.queue == "small"

    def test_mending_the_routing_key_ends_the_quarantine(
        self, routes: Callable[..., None], due: Callable[..., Any]
    ) -> None:
        routes()
        (only,) = due(exchange="sizes", routing_key="tiny")
        row = type(schedule("other")).objects.get(name="nightly")
        assert (only.state, plan_of(row).needs_plan) == (State.SKIPPED, False)
        assert "bind no queue" in plan_of(row).error
        type(row).objects.filter(pk=row.pk).update(routing_key="small")
        assert plan_of(row).needs_plan


@pytest.mark.django_db
class TestEntries:
    def test_an_entrys_exchange_and_routing_key_are_kept(
        self, routes: Callable[..., None], settings: Any
    ) -> None:
        from scheduling.models import Schedule

        routes()
        settings.CELERY_BEAT_SCHEDULE = {
            "e": {"task": ADD, "schedule": 5, "args": [1, 2],
                  "options": {"exchange": Exchange("sizes"), "routing_key": "big"}},
        }  # fmt: skip
        from_code.sync()
        row = Schedule.objects.get(name="e")
        assert (row.exchange, row.routing_key) == ("sizes", "big")
        assert run_now(row, by="ann").queue == "big"


def test_the_form_refuses_a_routing_key_that_leads_nowhere(
    db: None, routes: Callable[..., None]
) -> None:
    routes()
    row = schedule()
    data = {
        "name": "n", "task": ADD, "args": "[1, 2]", "kwargs": "{}", "headers": "{}",
        "enabled": "on", "crontab": row.crontab_id, "exchange": "sizes", "routing_key": "tiny",
    }  # fmt: skip
    form = ScheduleForm(data)
    assert not form.is_valid()
    assert "bind no queue" in str(form.errors["exchange"])
    form = ScheduleForm({**data, "routing_key": "small"})
    assert form.is_valid(), form.errors
