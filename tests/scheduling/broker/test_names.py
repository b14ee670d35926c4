"""Hints lie where kombu's own channel puts a message, whatever the transport options say."""

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import current_app
from kombu import Queue

from scheduling.broker import doorbell
from scheduling.ids import uuid7
from scheduling.models import Priority
from scheduling.runs.hints import Broker, Hint, Lane
from tests.jobs.tasks import add

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
