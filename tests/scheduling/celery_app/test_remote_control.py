"""Remote control: which commands workers obey."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import current_app
from celery.worker.control import Panel
from kombu.utils.json import loads
from pytest_django import Settings

from scheduling.celery_app import remote_control
from scheduling.celery_app.remote_control import guard, is_command, signed


@pytest.fixture(autouse=True)
def obeyed(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Iterator[list[Any]]:
    """Return the list of arguments that a guarded `time_limit` gets, for this test alone."""
    obeyed: list[Any] = []
    before = dict(Panel.data)
    monkeypatch.setattr(remote_control, "_seen", {})
    Panel.data["time_limit"] = lambda state, **arguments: obeyed.append(arguments)
    settings.ACCEPT_UNSIGNED_CONTROL = False
    guard()
    yield obeyed
    Panel.data.update(before)


CALL = {"task_name": "t", "soft": 1.5}


def command(**arguments: Any) -> Any:
    return Panel.data["time_limit"](None, **arguments)


def test_a_signed_command_is_obeyed_once(obeyed: list[Any]) -> None:
    sent = signed("time_limit", CALL)
    command(**sent)
    assert obeyed == [CALL]
    assert "obeyed already" in command(**sent)["error"]
    command(**signed("time_limit", CALL))
    assert obeyed == [CALL, CALL]


@pytest.mark.parametrize(
    "change",
    [
        {"call": '{"task_name": "other"}'}, {"stamp": "0 x"}, {"stamp": "nan x"}, {"stamp": ""},
        {"signature": "0"}, {"signature": None}, {"signature": "\u00e4"}, {"call": ["x"]},
    ],
    ids=str,
)  # fmt: skip
def test_one_that_was_changed_is_not(obeyed: list[Any], change: dict[str, Any]) -> None:
    assert command(**{**signed("time_limit", CALL), **change})["error"].startswith("refused")
    assert obeyed == []


def test_one_that_is_signed_for_another_command_is_not(obeyed: list[Any]) -> None:
    assert "not signed with" in command(**signed("rate_limit", CALL))["error"]
    assert obeyed == []


def test_one_that_is_old_is_not(obeyed: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    sent, now = signed("time_limit", CALL), time.time()
    monkeypatch.setattr("time.time", lambda: now + 100)
    assert "s old" in command(**sent)["error"]
    assert obeyed == []


def test_an_unsigned_one_is_only_where_that_is_set(obeyed: list[Any], settings: Settings) -> None:
    assert command(**CALL) == {"error": "refused: it is not signed"}
    settings.ACCEPT_UNSIGNED_CONTROL = True
    command(**CALL)
    assert obeyed == [CALL]


def test_questions_need_no_signature() -> None:
    assert not is_command("ping")
    assert is_command("shutdown")
    assert not hasattr(Panel.data["ping"], "is_guard")
    assert all(hasattr(Panel.data[name], "is_guard") for name in Panel.meta if is_command(name))


def test_the_app_signs_what_it_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    control: Any = current_app.control

    def note(_: Any, command: str, arguments: Any, *more: Any, **others: Any) -> None:
        sent.append(arguments)

    monkeypatch.setattr(type(control.mailbox), "_broadcast", note)
    control.time_limit("t", soft=1, made_up=7)
    control.broadcast("ping")
    assert sent[0].keys() == {"call", "stamp", "signature"}
    assert loads(sent[0]["call"]) == {"task_name": "t", "hard": None, "soft": 1, "made_up": 7}
    assert not sent[1]
