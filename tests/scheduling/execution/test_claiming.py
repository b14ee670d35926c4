"""A claim whose answer is lost on the way: the worker has the run, and does not know it."""

from datetime import timedelta

import pytest
from django.db import OperationalError, connection

from chaos.network import Proxy
from scheduling import clock
from scheduling.execution.claiming import claim, claim_on_a_clean_connection
from scheduling.execution.finishing import finish
from scheduling.ids import uuid7
from scheduling.models import Run, State
from scheduling.postgres.patience import patiently
from scheduling.runs.outcomes import Outcome
from tests.jobs import tasks
from tests.scheduling.ledger import run

pytestmark = pytest.mark.django_db(transaction=True)


def fresh(made: Run) -> Run:
    return Run.objects.get(pk=made.pk)


def test_a_child_that_lost_the_answer_to_its_claim_gets_the_run_again(proxy: Proxy) -> None:
    made = run(State.QUEUED, max_attempts=1)
    proxy.lose_the_answer_to(made.pk.hex.encode())
    claimed = claim_on_a_clean_connection(made.pk, 1, made.task, "w")
    assert claimed is not None
    assert proxy.cuts == 1, "its first claim was committed, and the answer was lost"
    after = fresh(made)
    assert (after.state, after.attempt, after.failures) == (State.RUNNING, 1, 0)
    assert finish(made.pk, 1, Outcome(State.SUCCEEDED))


def test_a_claim_that_nobody_heard_of_is_committed(proxy: Proxy) -> None:
    made = run(State.QUEUED)
    proxy.lose_the_answer_to(made.pk.hex.encode())
    with pytest.raises(OperationalError):
        claim(made.pk, 1, made.task)
    connection.close()
    assert fresh(made).state == State.RUNNING


def test_another_claim_does_not_get_a_run_that_is_taken() -> None:
    made = run(State.QUEUED)
    mine = uuid7()
    assert claim(made.pk, 1, made.task, mine)
    assert claim(made.pk, 1, made.task, uuid7()) is None
    assert claim(made.pk, 1, made.task) is None
    assert claim(made.pk, 1, made.task, mine)


def test_a_repeated_claim_gets_no_run_that_has_ended_or_is_another_attempt() -> None:
    made, mine = run(State.QUEUED, task=tasks.add.name), uuid7()
    assert claim(made.pk, 1, made.task, mine)
    finish(made.pk, 1, Outcome(State.SCHEDULED, "lost", failed=True))
    assert claim(made.pk, 1, made.task, mine) is None
    assert fresh(made).state == State.SCHEDULED
    assert claim(made.pk, 2, made.task, mine)
    finish(made.pk, 2, Outcome(State.SUCCEEDED))
    assert claim(made.pk, 2, made.task, mine) is None


def test_a_repeated_claim_renews_the_lease() -> None:
    made, mine = run(State.QUEUED), uuid7()
    assert claim(made.pk, 1, made.task, mine)
    Run.objects.update(lease_expires_at=clock.now())
    assert claim(made.pk, 1, made.task, mine)
    lease = fresh(made).lease_expires_at
    assert lease is not None
    assert lease > clock.now() + timedelta(seconds=1)


@pytest.mark.parametrize("odd", ["infinity", "-infinity", "12000-01-01", "0044-03-15 BC"])
def test_a_run_that_was_due_when_python_knows_no_time_is_run(odd: str) -> None:
    made = run(State.QUEUED)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE scheduling_run SET due_at = %s", [odd])
    claimed = claim(made.pk, 1, made.task)
    assert claimed is not None
    assert claimed.due_at.year in (1, 9999)


@pytest.mark.django_db(transaction=True)
def test_a_conflict_with_another_transaction_is_named_as_such(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries = []

    def act() -> None:
        tries.append(1)
        if len(tries) == 1:
            with connection.cursor() as cursor:
                cursor.execute(
                    "DO $$ BEGIN RAISE 'could not serialize access' USING ERRCODE = '40001'; END $$"
                )

    patiently(act)
    assert len(tries) == 2
    assert "conflict_retried" in caplog.text
    assert "database_away" not in caplog.text
