"""The gate: which messages in Redis a worker lets in."""

import base64
import json
import logging
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
import redis
from celery import chain, current_app
from kombu import Consumer, Queue
from pytest_django import Settings

from scheduling.broker import refusals
from scheduling.broker.gate import ForeignHintError, Gate
from scheduling.broker.signing import ATTEMPT, LEDGER, SIGNATURE, TASK
from scheduling.ids import uuid7
from scheduling.postgres import identity
from scheduling.runs.hints import Hint, message
from scheduling.worker_process import WorkerProcess, process_of
from tests.jobs.tasks import add, write

OTHER = "tests.jobs.tasks.write"
LEDGER_ID = "0c0f6c1e-0000-4000-8000-000000000001"


@pytest.fixture
def unknown() -> list[Any]:
    """Return the list of unknown hints that the gate has reported."""
    return []


@pytest.fixture(autouse=True)
def gate(monkeypatch: pytest.MonkeyPatch, settings: Settings, unknown: list[Any]) -> Gate:
    """Make this process a worker with a gate of its own."""
    monkeypatch.setattr(refusals, "_since", {})
    settings.UNTRACKED_TASKS = [add.name]
    made = Gate(current_app, lambda *hint: unknown.append(hint))
    made.ledger = LEDGER_ID
    monkeypatch.setattr(current_app, "worker_process", WorkerProcess(gate=made))
    return made


def plain(name: str = add.name, **options: Any) -> dict[str, Any]:
    """Return a plain message as it lies in Redis."""
    made: Any = current_app.amqp.as_task_v2(str(uuid7()), name, (1, 2), **options)
    body = base64.b64encode(json.dumps(made.body).encode()).decode()
    where = {"exchange": "", "routing_key": "probe"}
    properties = {"body_encoding": "base64", "delivery_tag": str(uuid7()), "priority": 0,
                  "delivery_info": where, **made.properties}  # fmt: skip
    return {"headers": made.headers, "properties": properties, "body": body,
            "content-type": "application/json", "content-encoding": "utf-8"}  # fmt: skip


def judge(message: Any, queue: str = "probe") -> Any:
    gate = process_of(current_app).gate
    assert gate is not None
    return gate.judge(message, queue)


class TestPlainMessages:
    def test_one_of_a_task_that_is_named_passes_as_it_is(self) -> None:
        message = plain()
        assert judge(message) is message

    def test_one_of_another_task_is_refused_unless_all_are_accepted(
        self, settings: Settings
    ) -> None:
        assert judge(plain(OTHER)) is None
        settings.ACCEPT_UNTRACKED = True
        assert judge(plain(OTHER)) is not None

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
        assert judge(plain(**options)) is None

    @pytest.mark.parametrize(
        "options", [{"callbacks": [add.s(1)]}, {"chain": [add.s(1)]}, {"chord": add.s(1)}], ids=str
    )
    def test_one_that_sets_off_tasks_that_are_named_passes(self, options: Any) -> None:
        assert judge(plain(**options)) is not None

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
        assert judge({**plain(), **damage}) is None

    def test_a_flood_of_them_is_a_line_a_minute_for_each_task(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [1000.0]
        monkeypatch.setattr("time.monotonic", lambda: now[0])
        with caplog.at_level(logging.WARNING, "scheduling.broker.refusals"):
            for _ in range(500):
                judge(plain(OTHER))
                judge(plain("t.b"))
            now[0] += 61
            judge(plain(OTHER))
            for number in range(1000):
                judge(plain(f"made.up.{number}"))
        lines = [record.fields for record in caplog.records]  # type: ignore[attr-defined]
        assert [(line["task"], line["messages"]) for line in lines[:3]] == [
            (OTHER, 1), ("t.b", 1), (OTHER, 500),
        ]  # fmt: skip
        assert len(lines) <= 4 + refusals.DISTINCT_MAX


class TestHints:
    @pytest.fixture(autouse=True)
    def own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(identity, "_known", LEDGER_ID)

    def test_one_passes_with_nothing_but_what_is_signed(self) -> None:
        sent = hint()
        passed = judge({**sent, "headers": {**sent["headers"], **LIES}, "body": LIE})
        assert passed is not None
        headers = passed["headers"]
        assert {name: headers[name] for name in SIGNED} == {
            name: sent["headers"][name] for name in SIGNED
        }
        assert not any(headers.get(name) == lie for name, lie in LIES.items() if lie)
        assert headers["root_id"] == headers["id"]
        assert headers["task"] == headers[TASK] == add.name
        args, kwargs, embedded = json.loads(base64.b64decode(passed["body"]))
        assert (args, kwargs, set(embedded.values())) == ([], {}, {None})

    def test_its_limits_are_those_of_its_run(self) -> None:
        passed = judge(hint(options='{"time_limit": 9.5, "soft_time_limit": 7}'))
        assert passed["headers"]["timelimit"] == [9.5, 7]

    @pytest.mark.parametrize(
        "lie",
        [
            {"id": str(UUID(int=7))}, {ATTEMPT: 2}, {ATTEMPT: True}, {ATTEMPT: "1"}, {ATTEMPT: 1.0},
            {TASK: OTHER}, {"timelimit": [0.1, None]}, {"timelimit": None}, {SIGNATURE: "0" * 64},
            {SIGNATURE: None}, {SIGNATURE: "\ud800"}, {"id": "\ud800"}, {"id": 7}, {TASK: ["t"]},
            {LEDGER: None},
        ],
        ids=str,
    )  # fmt: skip
    def test_one_that_is_not_what_was_signed_is_refused(self, lie: dict[str, Any]) -> None:
        sent = hint()
        assert judge({**sent, "headers": {**sent["headers"], **lie}}) is None

    def test_one_of_a_release_that_did_not_sign_is_refused(self) -> None:
        sent = hint()
        del sent["headers"][SIGNATURE], sent["headers"][LEDGER]
        assert judge(sent) is None

    def test_one_in_another_queue_is_refused(self) -> None:
        assert judge(hint(), "another") is None

    def test_one_of_another_ledger_is_told_apart(self) -> None:
        sent = hint()
        sent["headers"][LEDGER] = str(uuid7())
        with pytest.raises(ForeignHintError):
            judge(sent)

    def test_keys_can_be_changed(self, settings: Settings) -> None:
        old = hint()
        settings.HINT_KEY = "n" * 50
        assert judge(old) is None
        settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
        assert judge(old) is not None
        assert judge(hint()) is not None

    def test_one_of_an_unknown_task_is_reported_and_goes_no_further(
        self, unknown: list[Any]
    ) -> None:
        sent = hint(task="gone.task")
        assert judge(sent) is None
        assert unknown == [(UUID(sent["headers"]["id"]), 1, "gone.task")]

    def test_no_two_have_the_same_tag_whatever_they_say(self) -> None:
        sent = hint()
        tags = {judge(sent)["properties"]["delivery_tag"] for _ in range(3)}
        assert len(tags) == 3

    @pytest.mark.parametrize(
        ("said", "priority"), [(0, 0), (9, 9), (10, 6), ("0", 6), (True, 6), (None, 6), ([], 6)]
    )
    def test_an_odd_priority_is_the_medium_one(self, said: Any, priority: int) -> None:
        sent = hint()
        sent["properties"]["priority"] = said
        assert judge(sent)["properties"]["priority"] == priority

    @pytest.mark.parametrize(
        "odd", [None, [], "x", 7, {}, {"headers": None}, {"headers": []}], ids=str
    )
    def test_what_is_no_message_is_refused(self, odd: Any) -> None:
        assert judge(odd) is None


SIGNED = ("id", TASK, "timelimit", ATTEMPT, LEDGER, SIGNATURE)
LIES = {
    "eta": "2099-01-01T00:00:00", "expires": "2001-01-01T00:00:00", "retries": 7, "group": "g",
    "group_index": 1, "stamped_headers": ["s"], "stamps": {"s": 1}, "s": 1, "shadow": "x",
    "root_id": "r", "parent_id": "p", "ignore_result": True, "replaced_task_nesting": 3,
    "made_up": 1, "argsrepr": "", "kwargsrepr": "",
}  # fmt: skip
LIE = base64.b64encode(
    json.dumps([[1], {"y": 2}, {"callbacks": [add.s(1)], "errbacks": [add.s(1)]}]).encode()
).decode()


def hint(**columns: Any) -> dict[str, Any]:
    """Return a hint as it lies in Redis."""
    values: dict[str, Any] = {"id": uuid7(), "attempt": 1, "task": add.name, "queue": "probe",
                              "priority": 6, "options": "{}"}  # fmt: skip
    found: dict[str, Any] = json.loads(message(Hint(**{**values, **columns})))
    return found


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
        assert redis_client.hlen("unacked") == 1, "the message that passed is not acknowledged"

    @pytest.mark.parametrize(
        ("queue", "judged"),
        [("celery", True), ("probe", True), ("w@h.celery.pidbox", False),
         ("7f.reply.celery.pidbox", False), ("celeryev.7f", False)],
    )  # fmt: skip
    def test_remote_control_and_events_are_not_judged(
        self, gate: Gate, queue: str, *, judged: bool
    ) -> None:
        assert gate.judges(queue) == judged

    def test_only_a_worker_judges(
        self, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(current_app, "worker_process", WorkerProcess())
        redis_client.lpush("probe", json.dumps(plain(OTHER)))
        got: list[Any] = []
        with (
            current_app.connection_for_read() as connection,
            Consumer(connection, Queue("probe"), callbacks=[lambda body, _: got.append(body)]),
        ):
            connection.drain_events(timeout=5)
        assert len(got) == 1
