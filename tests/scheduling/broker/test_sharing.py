"""Two installations in one database of Redis."""

import json
from typing import Any

import pytest
import redis
from celery import current_app
from kombu import Consumer, Queue
from pytest_django import Settings

from scheduling.broker import sharing, transport
from scheduling.broker.gate import Gate
from scheduling.broker.names import names
from scheduling.broker.sharing import sign_in
from scheduling.ids import uuid7
from scheduling.postgres import identity
from scheduling.runs.hints import Hint, message
from scheduling.worker_process import WorkerProcess
from tests.jobs.tasks import add

LIST = "probe\x06\x166"


@pytest.fixture(autouse=True)
def fresh(redis_client: redis.Redis) -> None:
    sharing._client.cache_clear()


def hint() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(message(Hint(uuid7(), 1, "t", "probe", 6, "{}")))
    return found


class TestSigningIn:
    def test_a_beat_is_told_of_other_ledgers_and_not_of_its_own(
        self, redis_client: redis.Redis
    ) -> None:
        assert sign_in(redis_client, sharing.LEDGERS, "a") == []
        assert sign_in(redis_client, sharing.LEDGERS, "a") == []
        assert sign_in(redis_client, sharing.LEDGERS, "b") == ["a"]
        assert sign_in(redis_client, sharing.LEDGERS, "a") == ["b"]

    def test_one_that_has_not_signed_in_of_late_has_gone(self, redis_client: redis.Redis) -> None:
        redis_client.zadd(sharing.LEDGERS, {"gone": 7})
        assert sign_in(redis_client, sharing.LEDGERS, "a") == []

    def test_names_that_are_made_up_stop_no_beat(self, redis_client: redis.Redis) -> None:
        seconds, _ = redis_client.time()
        made_up: Any = {
            b"\xff\xfe": seconds,
            **{f"x{number}": seconds for number in range(100)},
        }
        redis_client.zadd(sharing.LEDGERS, made_up)
        assert 0 < len(sign_in(redis_client, sharing.LEDGERS, "a")) < 20


class TestAForeignHint:
    def test_it_is_put_back_at_the_far_end_if_its_ledger_is_there(
        self, redis_client: redis.Redis
    ) -> None:
        sign_in(redis_client, sharing.LEDGERS, "theirs")
        redis_client.lpush(LIST, "another")
        sharing.pass_on(names(), hint(), "probe", "theirs")
        assert redis_client.rpop(LIST) == b"another"
        assert redis_client.llen(LIST) == 1

    def test_it_is_dropped_if_nobody_would_take_it(self, redis_client: redis.Redis) -> None:
        sharing.pass_on(names(), hint(), "probe", "theirs")
        assert redis_client.dbsize() == 0

    @pytest.mark.parametrize("properties", [None, [], {}, {"priority": "x"}, {"priority": 99}])
    def test_one_that_is_garbage_is_dropped(
        self, redis_client: redis.Redis, properties: Any
    ) -> None:
        sign_in(redis_client, sharing.LEDGERS, "theirs")
        sharing.pass_on(names(), {**hint(), "properties": properties}, "probe", "theirs")
        assert not redis_client.exists(LIST)

    def test_many_in_a_row_keep_the_worker_from_their_list_alone(
        self, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, settings: Settings
    ) -> None:
        monkeypatch.setattr(transport, "FOREIGN_FOR", 60.0)
        monkeypatch.setattr(identity, "_known", "theirs")
        sign_in(redis_client, sharing.LEDGERS, "theirs")
        redis_client.lpush(LIST, json.dumps(hint()))
        process = WorkerProcess(gate=Gate(current_app, lambda *_: None))
        monkeypatch.setattr(current_app, "worker_process", process)
        settings.UNTRACKED_TASKS = [add.name]
        got: list[Any] = []
        with current_app.connection_for_read() as connection:
            queues = [Queue("probe"), Queue("other")]
            with Consumer(connection, queues, callbacks=[lambda body, _: got.append(body)]):
                for _ in range(transport.FOREIGN_MAX):
                    connection.drain_events(timeout=5)
                add.apply_async((1, 2), queue="other")
                connection.drain_events(timeout=5)
                with pytest.raises(TimeoutError):
                    connection.drain_events(timeout=0.5)
        assert len(got) == 1
        assert process.intake.taken == transport.FOREIGN_MAX + 1
        assert redis_client.llen(LIST) == 1, "the hint was put back each time"
