import base64
import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
import redis
from celery import current_app
from kombu import Queue
from pytest_django import Settings

from scheduling.broker.signing import ATTEMPT, LEDGER, SIGNATURE, TASK
from scheduling.ids import uuid7
from scheduling.models import Priority
from scheduling.postgres.identity import ledger_id
from scheduling.runs.hints import Broker, Hint, Lane, list_key, message
from tests.jobs.tasks import add
from tests.scheduling.ledger import ADD


@pytest.fixture
def broker(redis_client: redis.Redis) -> Broker:
    return Broker()


def hint(number: int = 1, *, queue: str = "celery", priority: int = 6, **columns: Any) -> Hint:
    values: dict[str, Any] = {"id": uuid7(), "attempt": number, "task": ADD, "options": "{}"}
    return Hint(**{**values, "queue": queue, "priority": priority, **columns})


def structure(payload: str | bytes) -> dict[str, Any]:
    """Return a message without the fields that differ between messages, its body decoded."""
    found: dict[str, Any] = json.loads(payload)
    found["body"] = json.loads(base64.b64decode(found["body"]))
    for name in ("id", "root_id"):
        assert UUID(found["headers"].pop(name))
    assert UUID(found["properties"].pop("correlation_id"))
    assert found["properties"].pop("delivery_tag")
    return found


class TestTheFormat:
    @pytest.mark.parametrize("priority", list(Priority))
    def test_a_hint_is_what_apply_async_puts_into_redis_but_for_ids_arguments_and_what_is_signed(
        self, redis_client: redis.Redis, settings: Settings, priority: Priority
    ) -> None:
        settings.UNTRACKED_TASKS = [ADD]
        add.apply_async(
            (1, 2), queue="mails", priority=priority.value, time_limit=9, soft_time_limit=7
        )
        key = list_key(Lane("mails", priority.value))
        (theirs,) = redis_client.lrange(key, 0, -1)
        ours = structure(
            message(
                hint(
                    queue="mails",
                    priority=priority.value,
                    options='{"time_limit": 9, "soft_time_limit": 7}',
                )
            )
        )
        wanted = structure(theirs)
        ours["headers"]["task"] = ours["headers"].pop(TASK)
        assert ours["headers"].pop(ATTEMPT) == 1
        assert ours["headers"].pop(LEDGER) == ledger_id()
        assert len(ours["headers"].pop(SIGNATURE)) == 32
        assert ours["body"] == [[], {}, wanted["body"][2]]
        assert wanted["body"][:2] == [[1, 2], {}]
        wanted["body"] = ours["body"]
        wanted["headers"].update(argsrepr="()", kwargsrepr="{}")
        # Headers without a value are left out of a hint.
        wanted["headers"] = {k: v for k, v in wanted["headers"].items() if v is not None}
        assert ours["headers"].pop("stamps", {}) == wanted["headers"].pop("stamps", {})
        reply_to = wanted["properties"].pop("reply_to")
        assert reply_to != ours["properties"].pop("reply_to")
        assert ours == wanted

    def test_a_worker_could_read_it(self, redis_client: redis.Redis, broker: Broker) -> None:
        sent = hint(3, queue="probe")
        broker.push([sent])
        with current_app.connection_for_read() as connection:
            queue = Queue("probe", channel=connection.default_channel)
            queue.declare()
            got: Any = queue.get(no_ack=True)
        assert got is not None
        assert got.headers["id"] == str(sent.id)
        assert got.headers[TASK] == ADD
        assert "task" not in got.headers  # which a worker of Celery's own would call
        assert got.headers[ATTEMPT] == 3
        assert got.properties["correlation_id"] == str(sent.id)
        args, kwargs, embedded = got.payload
        assert (args, kwargs) == ([], {})
        assert embedded["chain"] is None

    def test_arguments_never_travel(self) -> None:
        assert json.loads(message(hint()))["headers"]["argsrepr"] == "()"

    def test_no_two_hints_share_an_id_or_a_tag(self) -> None:
        ids = [uuid7() for _ in range(50)]
        texts = [json.loads(message(hint(id=key))) for key in ids]
        assert [text["headers"]["id"] for text in texts] == [str(key) for key in ids]
        assert len({text["properties"]["delivery_tag"] for text in texts}) == 50

    @pytest.mark.parametrize("task", ['odd "name"', "Zürich", "a\\b", "x" * 200])
    def test_any_name_of_a_task_fits(self, task: str) -> None:
        assert json.loads(message(hint(task=task)))["headers"][TASK] == task

    @pytest.mark.parametrize("queue", ["50% off", "%(x)s", "a\x06\x16b", "ü ☃", 'q"', "a\\b"])
    def test_any_name_of_a_queue_fits(self, queue: str) -> None:
        text = json.loads(message(hint(queue=queue)))
        assert text["properties"]["delivery_info"]["routing_key"] == queue

    @pytest.mark.parametrize(
        "options",
        [
            "", "{", "[]", "null", '"time_limit"', '{"time_limit": [1]}',
            '{"time_limit": {"a": 1}}', '{"time_limit": "soon"}', '{"time_limit": NaN}',
            '{"soft_time_limit": 1e400}', '{"soft_time_limit": -1}', '{"time_limit": true}',
        ],
    )  # fmt: skip
    def test_odd_options_are_no_limits_and_stop_no_other(
        self, redis_client: redis.Redis, broker: Broker, options: str
    ) -> None:
        odd, other = hint(options=options), hint(options='{"time_limit": 9}')
        assert broker.push([odd, other]) == 2
        texts = redis_client.lrange(list_key(Lane("celery", 6)), 0, -1)
        limits = [json.loads(text)["headers"]["timelimit"] for text in texts]
        assert limits == [[9, None], [None, None]]

    def test_an_eta_is_never_in_it(self) -> None:
        headers = json.loads(message(hint()))["headers"]
        assert (headers.get("eta"), headers.get("expires"), headers["retries"]) == (None, None, 0)


class TestTheBroker:
    def test_each_priority_has_its_list(self, redis_client: redis.Redis, broker: Broker) -> None:
        broker.push([hint(priority=step) for step in Priority for _ in range(step + 1)])
        lengths = {step: redis_client.llen(list_key(Lane("celery", step))) for step in Priority}
        assert lengths == {step: step + 1 for step in Priority}
        assert redis_client.exists("celery", "celery\x06\x163", "celery\x06\x169") == 3
        lanes = [Lane("celery", step.value) for step in Priority]
        assert broker.lengths(lanes) == dict(zip(lanes, (1, 4, 7, 10), strict=True))

    def test_first_pushed_is_first_served(self, redis_client: redis.Redis, broker: Broker) -> None:
        first, second = hint(1), hint(2)
        broker.push([first, second])
        taken: Any = redis_client.brpop([list_key(Lane("celery", 6))])
        assert str(first.id) in taken[1].decode()

    def test_it_reads_a_long_list_piece_by_piece(
        self, broker: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hints = [hint() for _ in range(7)]
        broker.push(hints)
        for piece in (1, 2, 7, 8):
            monkeypatch.setattr("scheduling.runs.hints.PIECE", piece)
            assert broker.ids_in(Lane("celery", 6)) == {one.id for one in hints}

    def test_it_finds_ids_in_a_list_beside_plain_messages(
        self, broker: Broker, settings: Settings
    ) -> None:
        settings.UNTRACKED_TASKS = [ADD]
        plain = add.apply_async((1, 2))
        ours = hint()
        broker.push([ours])
        assert broker.ids_in(Lane("celery", 6)) == {ours.id, UUID(plain.id)}
        assert broker.ids_in(Lane("celery", 0)) == set()

    def test_what_others_leave_in_a_list_is_no_trouble(
        self, redis_client: redis.Redis, broker: Broker
    ) -> None:
        redis_client.lpush(list_key(Lane("celery", 6)), b"\xff nonsense", b"{}", b'{"id": "x"}')
        assert broker.ids_in(Lane("celery", 6)) == set()


@pytest.fixture
def consumer(redis_client: redis.Redis) -> Iterator[Any]:
    with current_app.connection_for_read() as connection:
        queue = Queue("probe", channel=connection.default_channel)
        queue.declare()
        yield queue
