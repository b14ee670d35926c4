"""The notes in Redis of messages that a worker's connection has taken."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
import redis
from celery import current_app
from kombu import Queue
from pytest_django import Settings

from scheduling.ids import uuid7
from scheduling.runs.hints import Broker, Hint, Lane
from tests.jobs.tasks import add

PROBE = Lane("probe", 6)


@pytest.fixture
def consumer(redis_client: redis.Redis) -> Iterator[Any]:
    with current_app.connection_for_read() as connection:
        queue = Queue("probe", channel=connection.default_channel)
        queue.declare()
        yield queue


@pytest.fixture
def hint(redis_client: redis.Redis) -> UUID:
    """Push a hint for the consumer to take, and return its run's id."""
    run_id = uuid7()
    Broker().push([Hint(run_id, 1, add.name, *PROBE, "{}")])
    return run_id


class TestAHint:
    def test_nothing_is_kept_of_it(
        self, consumer: Any, hint: UUID, redis_client: redis.Redis
    ) -> None:
        taken = consumer.get(no_ack=False)
        assert taken.headers["id"] == str(hint)
        assert not redis_client.exists("unacked", "unacked_index")
        taken.ack()
        assert not redis_client.exists("unacked", "unacked_index")
        assert Broker().ids_in(PROBE) == set()

    def test_it_is_put_back_if_the_worker_cannot_take_it(self, consumer: Any, hint: UUID) -> None:
        consumer.get(no_ack=False).requeue()
        assert Broker().ids_in(PROBE) == {hint}
        again = consumer.get(no_ack=False)
        assert again.headers["id"] == str(hint)
        again.ack()

    def test_it_is_gone_if_it_is_rejected(self, consumer: Any, hint: UUID) -> None:
        consumer.get(no_ack=False).reject()
        assert Broker().ids_in(PROBE) == set()

    def test_one_that_was_not_begun_is_put_back_at_the_end(self, consumer: Any, hint: UUID) -> None:
        consumer.get(no_ack=False)
        consumer.channel.close()
        assert Broker().ids_in(PROBE) == {hint}

    def test_one_that_was_begun_is_not(self, consumer: Any, hint: UUID) -> None:
        consumer.get(no_ack=False).ack()
        consumer.channel.close()
        assert Broker().ids_in(PROBE) == set()


class TestAPlainMessage:
    @pytest.fixture(autouse=True)
    def untracked(self, settings: Settings) -> None:
        settings.UNTRACKED_TASKS = [add.name]

    def test_it_is_kept_until_it_is_acknowledged(
        self, consumer: Any, redis_client: redis.Redis
    ) -> None:
        add.apply_async((1, 2), queue="probe")
        taken = consumer.get(no_ack=False)
        assert redis_client.hlen("unacked") == redis_client.zcard("unacked_index") == 1
        taken.ack()
        assert not redis_client.exists("unacked", "unacked_index")

    def test_one_that_was_not_begun_is_put_back_at_the_end(self, consumer: Any) -> None:
        sent = add.apply_async((1, 2), queue="probe")
        consumer.get(no_ack=False)
        consumer.channel.close()
        assert Broker().ids_in(PROBE) == {UUID(sent.id)}
