"""Hints lie where kombu's own channel puts a message, with any transport options."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis
from celery import current_app
from celery.app.routes import Router, prepare
from django_celery_beat.models import PeriodicTask
from kombu import Queue

from scheduling import clock, schedules
from scheduling.beat.firing import fire_due
from scheduling.broker import doorbell
from scheduling.broker.names import names
from scheduling.errors import EnqueueError
from scheduling.ids import uuid7
from scheduling.jobs import enqueue
from scheduling.models import Priority, State
from scheduling.runs.hints import Broker, Hint, Lane
from scheduling.schedules.planning import plan_changed
from scheduling.task_options import options_of
from tests.jobs.tasks import add
from tests.scheduling.commands import called
from tests.scheduling.ledger import ADD, LONG_AGO, plan_of, runs_of, schedule, set_plan

OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"global_keyprefix": "tenant7:"},
    {"sep": ":"},
    {"priority_steps": list(range(10))},
    {"priority_steps": [0, 5]},
    {"priority_steps": [0]},
    {"global_keyprefix": "tenant7:", "sep": "--", "unacked_key": "mine", "fanout_prefix": False,
     "queue_order_strategy": "sorted"},
)  # fmt: skip


@pytest.fixture(params=OPTIONS, ids=str)
def options(request: pytest.FixtureRequest, redis_client: redis.Redis) -> Iterator[dict[str, Any]]:
    conf = current_app.conf
    before = conf.broker_transport_options
    conf.broker_transport_options = {**before, **request.param}
    try:
        yield request.param
    finally:
        conf.broker_transport_options = before


EVERY_MINUTE = schedules.Every(timedelta(minutes=1))
TAKEN = [
    "unacked", "unacked_index", "unacked_mutex", "_kombu.binding.celery",
    "_kombu.binding_deadlines",
    "_kombu.binding_permanent.celery", "celery\x06\x166", "a\x06\x16b", "celery.pidbox",
    "w1@host.celery.pidbox", "4ce9.reply.celery.pidbox", "celeryev", "celeryev.4ce9",
    "scheduling.bell", "a\nb", "a\x00b", "a\x7fb", "zero\u200bwidth", "q" * 201,
]  # fmt: skip


@pytest.mark.parametrize("queue", TAKEN)
def test_no_queue_can_have_a_name_that_the_broker_uses_itself(queue: str) -> None:
    with pytest.raises(EnqueueError, match="queue"):
        options_of(add.name, asked={"queue": queue})


@pytest.mark.parametrize(
    "queue", ["celery", "unacked2", "kombu", "ev", "grün", "a b", "scheduling"]
)
def test_other_names_are_free(queue: str) -> None:
    assert options_of(add.name, asked={"queue": queue}).queue == queue


def test_names_that_transport_options_give_are_taken_too(redis_client: redis.Redis) -> None:
    conf = current_app.conf
    before = conf.broker_transport_options
    conf.broker_transport_options = {**before, "unacked_key": "mine"}
    try:
        assert names().why_taken("mine")
        assert not names().why_taken("unacked")
    finally:
        conf.broker_transport_options = before


@pytest.mark.usefixtures("options")
class TestEveryTransportOption:
    @pytest.mark.parametrize("priority", Priority)
    def test_a_hint_is_where_a_plain_message_is(
        self, priority: Priority, redis_client: redis.Redis
    ) -> None:
        with current_app.connection_for_write() as connection, connection.Producer() as producer:
            producer.publish({}, routing_key="probe", priority=priority, serializer="json")
        (key,) = redis_client.scan_iter(_type="list")
        lane, broker = Lane("probe", priority), Broker()
        broker.push([Hint(uuid7(), 1, add.name, *lane, "{}")])
        assert redis_client.llen(key) == 2
        assert broker.lengths([lane]) == {lane: 2}
        assert len(broker.ids_in(lane)) == 1

    def test_a_worker_takes_it_and_puts_it_back(self) -> None:
        run_id, lane = uuid7(), Lane("probe", 6)
        Broker().push([Hint(run_id, 1, add.name, *lane, "{}")])
        with current_app.connection_for_read() as connection:
            queue: Any = Queue("probe", channel=connection.default_channel)
            queue.declare()
            taken = queue.get(no_ack=False)
            assert taken.headers["id"] == str(run_id)
            taken.requeue()
            assert Broker().ids_in(lane) == {run_id}

    def test_a_ring_is_heard(self, options: dict[str, Any], redis_client: redis.Redis) -> None:
        listener = doorbell.Listener()
        listener.wait(0)
        expected = options.get("global_keyprefix", "") + doorbell.CHANNEL
        assert redis_client.pubsub_numsub(expected)[0][1] >= 1
        listener.close()


@pytest.mark.django_db
class TestEveryFace:
    """A name that the broker uses itself is refused in every place that names a queue."""

    def test_enqueue_and_schedules(self) -> None:
        acts: tuple[Callable[[], object], ...] = (
            lambda: enqueue(add, (1, 2), queue="unacked"),
            lambda: add.apply_async((1, 2), queue="unacked", countdown=5),
            lambda: add.apply_async((1, 2), queue="unacked"),
            lambda: schedules.add("odd", ADD, EVERY_MINUTE, by="t", args=(1, 2), queue="unacked"),
        )  # fmt: skip
        for act in acts:
            with pytest.raises(EnqueueError, match="the broker uses this name itself"):
                act()
        assert "unacked" not in current_app.amqp.queues

    def test_commands(self) -> None:
        for command in (
            ("enqueue", ADD, "--args", "[1, 2]", "--queue", "unacked"),
            ("schedule", "add", "odd", ADD, "--every", "5m", "--args", "[1, 2]", "--queue",
             "unacked"),
        ):  # fmt: skip
            answer = called(*command)
            assert answer.code in (1, 2)
            assert "the broker uses this name itself" in answer.err

    def test_a_route(self, monkeypatch: pytest.MonkeyPatch) -> None:
        amqp: Any = current_app.amqp
        router = Router(
            prepare([{ADD: {"queue": "unacked_index"}}]), amqp.queues, True, current_app
        )
        monkeypatch.setitem(amqp.__dict__, "router", router)
        with pytest.raises(EnqueueError, match="the broker uses this name itself"):
            enqueue(add, (1, 2))

    def test_a_schedule_that_got_one_by_sql_says_so_and_stops_no_other(
        self, redis_client: redis.Redis, bare_schedules: None
    ) -> None:
        odd, good = schedule("odd"), schedule("good")
        PeriodicTask.objects.filter(pk=odd.pk).update(queue="unacked", priority=0)
        plan_changed()
        for row in (odd, good):
            set_plan(row, clock.now() - timedelta(seconds=1))
        fire_due(LONG_AGO)
        said = plan_of(odd).error + "".join(made.reason for made in runs_of(odd))
        assert "the broker uses this name itself" in said
        assert [made.state for made in runs_of(good)] == [State.SCHEDULED]
        assert not [made for made in runs_of(odd) if made.state == State.QUEUED]
