"""Two installations in one database of Redis."""

import json
from typing import Any

import pytest
import redis

from scheduling.broker import intake, sharing
from scheduling.broker.names import names
from scheduling.broker.sharing import sign_in
from scheduling.ids import uuid7
from scheduling.runs.hints import Hint, message
from tests.waiting import wait_for

LIST = "probe\x06\x166"


@pytest.fixture(autouse=True)
def fresh(redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "foreign", sharing._Foreign())
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
        sharing.foreign.hand_on(names(), hint(), "probe", "theirs")
        assert redis_client.rpop(LIST) == b"another"
        assert redis_client.llen(LIST) == 1

    def test_it_is_dropped_if_nobody_would_take_it(self, redis_client: redis.Redis) -> None:
        sharing.foreign.hand_on(names(), hint(), "probe", "theirs")
        assert redis_client.dbsize() == 0

    @pytest.mark.parametrize("properties", [None, [], {}, {"priority": "x"}, {"priority": 99}])
    def test_one_that_is_garbage_is_dropped(
        self, redis_client: redis.Redis, properties: Any
    ) -> None:
        sign_in(redis_client, sharing.LEDGERS, "theirs")
        sharing.foreign.hand_on(names(), {**hint(), "properties": properties}, "probe", "theirs")
        assert not redis_client.exists(LIST)

    def test_many_in_a_row_make_the_worker_pause_and_its_own_do_not(
        self, redis_client: redis.Redis
    ) -> None:
        for _ in range(sharing.FOREIGN_MAX - 1):
            sharing.foreign.hand_on(names(), hint(), "probe", "theirs")
        sharing.foreign.own()
        sharing.foreign.hand_on(names(), hint(), "probe", "theirs")
        assert "another ledger" not in intake.closed()
        for _ in range(sharing.FOREIGN_MAX):
            sharing.foreign.hand_on(names(), hint(), "probe", "theirs")
        assert "another ledger" in intake.closed()
        wait_for(lambda: "another ledger" not in intake.closed())
