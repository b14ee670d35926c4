"""How a worker's parent treats a hint, in the loop that takes the next messages."""

import json
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery import current_app, shared_task
from celery.exceptions import WorkerLostError
from celery.worker import state as worker_state
from kombu.transport.virtual import Message

from scheduling.ids import uuid7
from scheduling.jobs import Job
from scheduling.runs.hints import Hint, message
from scheduling.workers.requests import HintRequest
from tests.scheduling.child import collect_reports


@shared_task(base=Job)
def early() -> None:
    pass


@shared_task(base=Job, acks_late=True, reject_on_worker_lost=True)
def late() -> None:
    pass


@shared_task(base=Job, retry_on_worker_lost=True)
def retried() -> None:
    pass


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the list of reports that the lease thread gets."""
    return collect_reports(monkeypatch)


CHILD = 1  # its process id


def request_of(task: Any) -> HintRequest:
    hint = json.loads(message(Hint(uuid7(), 1, task.name, "celery", 6, "{}")))
    hint["headers"]["task"] = task.name  # as the gate passes it on
    with current_app.connection_for_read() as broker:
        channel: Any = broker.default_channel
        request = HintRequest(Message(hint, channel=channel), app=current_app, task=task)
    request.on_accepted(CHILD, 0.0)
    return request


def lost(error: BaseException) -> Any:
    try:
        raise error
    except BaseException:
        return ExceptionInfo()


@pytest.mark.django_db
@pytest.mark.parametrize("task", [early, late, retried], ids=lambda task: task.name)
@pytest.mark.parametrize("error", [WorkerLostError("signal 9"), SystemExit(-15)], ids=repr)
def test_a_lost_child_is_reported_to_the_lease_thread_without_a_query(
    task: Any,
    error: BaseException,
    reported: list[Any],
    django_assert_num_queries: Any,
) -> None:
    request = request_of(task)
    with django_assert_num_queries(0):
        request.on_failure(lost(error))
    (report,) = reported
    assert (report.task_id, report.attempt, report.claimant) == (request.id, 1, CHILD)
    assert (report.status, report.error["exc_type"]) == ("FAILURE", "WorkerLostError")


def test_a_job_without_memory_ends_no_worker(reported: list[Any]) -> None:
    request = request_of(early)
    assert request in worker_state.active_requests
    request.on_failure(lost(MemoryError()), return_ok=True)
    assert request not in worker_state.active_requests
    assert reported == [], "its child has written its end"
