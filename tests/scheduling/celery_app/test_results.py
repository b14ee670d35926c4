"""Results as the ecosystem reads them, with every writer."""

from typing import Any

import pytest
from celery import current_app, states
from celery.app.task import Context
from django_celery_results.models import TaskResult
from kombu.exceptions import EncodeError

from scheduling.broker.signing import ATTEMPT
from scheduling.execution.finishing import finish
from scheduling.ids import uuid7
from scheduling.models import State
from scheduling.runs.outcomes import Outcome
from tests.scheduling.child import collect_reports
from tests.scheduling.ledger import ADD, run

pytestmark = pytest.mark.django_db

backend: Any = current_app.backend


def request(task_id: str, **columns: Any) -> Context:
    values: dict[str, Any] = {
        "id": task_id, "task": ADD, "args": [1, 2], "kwargs": {}, "argsrepr": "[1, 2]",
        "kwargsrepr": "{}", "hostname": "h", "children": [], "periodic_task_name": "nightly",
    }  # fmt: skip
    return Context({**values, **columns})


def columns_of(task_id: str) -> dict[str, Any]:
    names = ("id", "task_id", "date_created", "date_done", "date_started")
    row = TaskResult.objects.values().get(task_id=task_id)
    return {name: value for name, value in row.items() if name not in names}


@pytest.mark.parametrize("value", [3, None, "text", {"a": [1, 2]}, "\0 ☃"])
def test_a_prepared_result_is_what_django_celery_results_would_have_written(value: Any) -> None:
    plain, tracked = str(uuid7()), run(State.RUNNING)
    backend.store_result(plain, value, states.SUCCESS, request=request(plain))
    encoded = backend.encode_result(value, states.SUCCESS)
    prepared = backend.prepare(encoded, states.SUCCESS, None, request(str(tracked.pk)))
    finish(tracked.pk, 1, Outcome(State.SUCCEEDED, result=prepared))
    assert columns_of(str(tracked.pk)) == columns_of(plain)
    assert current_app.AsyncResult(str(tracked.pk)).get(timeout=1) == value


@pytest.mark.parametrize("stored", [None, states.RETRY])
def test_a_runs_result_is_found_in_whatever_form_its_id_was_given(stored: str | None) -> None:
    made = run(State.RUNNING)
    if stored:  # the plain message's, whose retry the run is
        backend.store_result(made.pk.hex, None, stored)
    promised = current_app.AsyncResult(made.pk.hex)
    assert promised.state == (stored or states.PENDING)
    finish(made.pk, 1, Outcome(State.SUCCEEDED, result=backend.prepare_success(7, ADD)))
    assert promised.get(timeout=1) == 7


def test_a_plain_message_with_such_an_id_keeps_its_own_result() -> None:
    plain = uuid7().hex
    backend.store_result(plain, 3, states.SUCCESS)
    assert current_app.AsyncResult(plain).get(timeout=1) == 3


def test_a_prepared_error_can_be_raised_again() -> None:
    made = run(State.RUNNING)
    result = backend.prepare_error(states.FAILURE, ValueError("why"), ADD)
    finish(made.pk, 1, Outcome(State.FAILED, result=result))
    promised = current_app.AsyncResult(str(made.pk))
    assert promised.state == states.FAILURE
    with pytest.raises(ValueError, match="why"):
        promised.get(timeout=1)


def test_what_is_no_json_is_refused_before_anything_is_written() -> None:
    with pytest.raises(EncodeError):
        backend.prepare(object(), states.SUCCESS)


def test_a_plain_result_is_stored_at_once() -> None:
    key = str(uuid7())
    backend.store_result(key, 3, states.SUCCESS, request=request(key))
    assert current_app.AsyncResult(key).get(timeout=1) == 3


def test_what_the_parent_says_of_a_hint_is_never_stored_beside_its_run() -> None:
    made = run(State.RUNNING)
    hint = request(str(made.pk), **{ATTEMPT: 1})
    backend.mark_as_failure(str(made.pk), ValueError("killed"), request=hint)
    assert not TaskResult.objects.exists()


def test_an_end_that_only_the_parent_has_seen_goes_to_its_lease_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reports = collect_reports(monkeypatch)
    made = run(State.RUNNING)
    backend.mark_as_failure(
        str(made.pk), ValueError("killed"), request=request(str(made.pk), **{ATTEMPT: 4})
    )
    (report,) = reports
    assert (report.task_id, report.attempt) == (str(made.pk), 4)
    assert report.status == states.FAILURE
    assert not TaskResult.objects.exists()
