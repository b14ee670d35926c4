"""Waits for a Postgres that says nothing have an end."""

import signal
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import OperationalError, connection, transaction
from pytest_django import Settings

from chaos.network import Proxy
from scheduling.postgres import silence
from scheduling.postgres.prepared import run_alone
from scheduling.postgres.silence import Waits
from tests.waiting import wait_for

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def waits(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Waits:
    settings.RUN_LEASE = timedelta(seconds=0.6)
    waits = Waits()
    monkeypatch.setattr(silence, "waits", waits)
    waits.watch()
    return waits


def ask() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        (answer,) = cursor.fetchone()
    return int(answer)


def test_who_waits_on_a_dead_connection_gets_an_error_and_can_try_again(
    waits: Waits, proxy: Proxy
) -> None:
    assert ask() == 1
    proxy.swallow()
    with pytest.raises(OperationalError), waits:
        ask()
    connection.close()
    with waits:
        assert ask() == 1


def test_a_connection_that_nobody_waits_on_is_left_alone(waits: Waits, proxy: Proxy) -> None:
    with waits:
        assert ask() == 1
    threading.Event().wait(0.5)
    assert ask() == 1


def test_what_asks_often_may_take_longer_than_one_answer_may(waits: Waits, proxy: Proxy) -> None:
    connection.ensure_connection()
    silence.time_each(connection.connection)
    for _ in range(8):  # at work for twice as long as an answer may take, and as long in Python
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(0.05)")
        threading.Event().wait(0.05)
    proxy.swallow()
    with pytest.raises(OperationalError):
        ask()
    connection.close()
    assert ask() == 1


def test_a_transaction_may_take_as_long_as_it_likes_if_each_answer_comes(
    waits: Waits, proxy: Proxy
) -> None:
    with waits, transaction.atomic():
        for _ in range(8):
            assert ask() == 1
            threading.Event().wait(0.1)  # at work in Python
    assert run_alone("SELECT %(n)s::int", {"n": 2}) == [(2,)]
    proxy.swallow()
    with pytest.raises(OperationalError), waits:
        run_alone("SELECT %(n)s::int", {"n": 2})
    connection.close()


def test_what_a_job_asks_may_take_as_long_as_it_likes(waits: Waits) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.5)")
    assert ask() == 1


def test_a_signal_is_left_to_the_main_thread(waits: Waits) -> None:
    # A signal that this thread took would not end a sleep of the job that is to be cancelled.
    thread = [one for one in threading.enumerate() if one.name == "silence"][-1]
    status = Path(f"/proc/self/task/{thread.native_id}/status")
    if not status.exists():
        pytest.skip("no /proc here")

    def blocked() -> int:
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("SigBlk"))
        return int(line.split()[1], 16) >> (signal.SIGUSR2 - 1) & 1

    wait_for(blocked)
