"""What a worker lets in of what lies in Redis: the gate."""

import base64
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import chain, current_app
from kombu import Consumer, Queue
from pytest_django import Settings

from scheduling.broker import gate
from scheduling.ids import uuid7
from tests.jobs.tasks import add, write

OTHER = "tests.jobs.tasks.write"


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    monkeypatch.setattr(gate, "_told", gate._Told())
    monkeypatch.setattr(gate, "_app", current_app)
    settings.UNTRACKED_TASKS = [add.name]


def plain(name: str = add.name, **options: Any) -> dict[str, Any]:
    """Return a plain message as it lies in Redis."""
    made: Any = current_app.amqp.as_task_v2(str(uuid7()), name, (1, 2), **options)
    body = base64.b64encode(json.dumps(made.body).encode()).decode()
    where = {"exchange": "", "routing_key": "probe"}
    properties = {"body_encoding": "base64", "delivery_tag": str(uuid7()), "priority": 0,
                  "delivery_info": where, **made.properties}  # fmt: skip
    return {"headers": made.headers, "properties": properties, "body": body,
            "content-type": "application/json", "content-encoding": "utf-8"}  # fmt: skip


class TestPlainMessages:
    def test_one_of_a_task_that_is_named_passes_as_it_is(self) -> None:
        message = plain()
        assert gate.judge(message) is message

    def test_one_of_another_task_is_refused_unless_all_are_accepted(
        self, settings: Settings
    ) -> None:
        assert gate.judge(plain(OTHER)) is None
        settings.ACCEPT_UNTRACKED = True
        assert gate.judge(plain(OTHER)) is not None

    @pytest.mark.parametrize(
        "options",
        [
            {"callbacks": [write.s("p")]},
            {"errbacks": [add.s(1), write.s("p")]},
            {"chain": [write.s("p"), add.s(1)]},
            {"chord": write.s("p")},
            {"callbacks": [chain(add.s(1), add.s(1).set(link=write.s("p")))]},
        ],
        ids=lambda options: next(iter(options)),
    )
    def test_one_that_would_set_off_another_task_is_refused(self, options: Any) -> None:
        assert gate.judge(plain(**options)) is None

    @pytest.mark.parametrize(
        "options", [{"callbacks": [add.s(1)]}, {"chain": [add.s(1)]}, {"chord": add.s(1)}], ids=str
    )
    def test_one_that_sets_off_tasks_that_are_named_passes(self, options: Any) -> None:
        assert gate.judge(plain(**options)) is not None

    @pytest.mark.parametrize(
        "damage",
        [
            {"body": "?"}, {"body": None}, {"body": base64.b64encode(b"[1, 2]").decode()},
            {"body": base64.b64encode(b"[" * 100_000).decode()}, {"properties": {}},
            {"headers": {}}, {"headers": {"task": None}}, {"headers": {"task": [add.name]}},
        ],
        ids=lambda damage: str(damage)[:30],
    )  # fmt: skip
    def test_what_cannot_be_read_is_refused(self, damage: Any) -> None:
        assert gate.judge({**plain(), **damage}) is None

    def test_a_flood_of_them_is_a_line_a_minute_for_each_task(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [1000.0]
        monkeypatch.setattr("time.monotonic", lambda: now[0])
        with caplog.at_level(logging.WARNING, "scheduling.broker.gate"):
            for _ in range(500):
                gate.judge(plain(OTHER))
                gate.judge(plain("t.b"))
            now[0] += 61
            gate.judge(plain(OTHER))
            for number in range(1000):
                gate.judge(plain(f"made.up.{number}"))
        lines = [record.fields for record in caplog.records]  # type: ignore[attr-defined]
        assert [(line["task"], line["messages"]) for line in lines[:3]] == [
            (OTHER, 1), ("t.b", 1), (OTHER, 500),
        ]  # fmt: skip
        assert len(lines) <= 4 + gate.TOLD_OF


class TestAWorkersTransport:
    @pytest.fixture
    def got(self, redis_client: redis.Redis) -> Iterator[list[Any]]:
        found: list[Any] = []
        with current_app.connection_for_read() as connection:
            consumer = Consumer(
                connection, Queue("probe"), callbacks=[lambda body, _: found.append(body)]
            )
            with consumer:
                redis_client.lpush("probe", *(json.dumps(plain(n)) for n in (OTHER, add.name)))
                connection.drain_events(timeout=5)
                connection.drain_events(timeout=5)
                yield found

    def test_what_is_refused_reaches_nobody_and_holds_nothing_up(
        self, got: list[Any], redis_client: redis.Redis
    ) -> None:
        assert [args for args, _, _ in got] == [[1, 2]]
        assert redis_client.llen("probe") == 0
        assert redis_client.hlen("unacked") == 1, "the one that passed, which is not acknowledged"

    @pytest.mark.parametrize(
        ("queue", "judged"),
        [("celery", True), ("probe", True), ("w@h.celery.pidbox", False),
         ("7f.reply.celery.pidbox", False), ("celeryev.7f", False)],
    )  # fmt: skip
    def test_remote_control_and_events_are_no_tasks(self, queue: str, *, judged: bool) -> None:
        assert gate.judges(queue) == judged

    def test_only_a_worker_judges(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gate, "_app", None)
        assert not gate.judges("celery")
