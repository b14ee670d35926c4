"""A Postgres that takes no writes for a while: the primary has become a standby."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import shared_task
from django.db import connection, connections

from scheduling.jobs import Job
from scheduling.models import Run, State
from tests.scheduling.child import forget_tracers, hint
from tests.scheduling.ledger import run, second_connection

pytestmark = pytest.mark.django_db(transaction=True)

meanwhile: list[Callable[[], None]] = []


@shared_task(base=Job, max_attempts=1)
def works() -> int:
    meanwhile.pop()()
    return 7


@pytest.fixture
def fail_over() -> Iterator[Callable[[], None]]:
    """Let this test's database take no writes for a second; connections that exist stay open."""
    name, timers = connection.settings_dict["NAME"], list[threading.Timer]()

    with second_connection() as other:
        other.autocommit = True

        def alter(setting: str) -> None:
            other.execute(f'ALTER DATABASE "{name}" {setting}')

        def switch() -> None:
            alter("SET default_transaction_read_only = on")
            connection.close()  # the next session has it from its beginning
            timers.append(threading.Timer(1, alter, ["RESET default_transaction_read_only"]))
            timers[-1].start()

        yield switch
        for timer in timers:
            timer.join()
    connections.close_all()
    forget_tracers()


@pytest.mark.parametrize("when", ["before its claim", "before its end"])
def test_a_run_waits_until_there_is_a_primary_again(
    fail_over: Callable[[], None], when: str, caplog: Any
) -> None:
    made = run(State.QUEUED, task=works.name, args="[]")
    if when == "before its claim":
        fail_over()
        meanwhile.append(lambda: None)
    else:
        meanwhile.append(fail_over)
    hint(made)
    after = Run.objects.get(pk=made.pk)
    assert (after.state, after.attempt, after.failures) == (State.SUCCEEDED, 1, 0), after.reason
    assert "database_away" in caplog.text
