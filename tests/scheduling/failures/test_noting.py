"""A failed run notes its kind and its place in the code for its group."""

from collections.abc import Callable
from typing import Any

import pytest
from celery import current_app
from celery.app.trace import build_tracer
from celery.exceptions import SoftTimeLimitExceeded, WorkerLostError
from django.conf import settings as project
from django.db import transaction

from scheduling.broker.signing import ATTEMPT
from scheduling.execution.attempts import refused
from scheduling.execution.finishing import finish
from scheduling.failures.noting import described, group_id, place_of, type_of
from scheduling.models import Failure, State
from scheduling.runs.outcomes import Outcome, failed_attempt
from tests.jobs import tasks
from tests.scheduling.ledger import ADD, run

ADD_JOB: Any = tasks.add
ROOT = project.BASE_DIR
VALUE_ERROR = f'''Traceback (most recent call last):
  File "{ROOT}/.venv/lib/python3.11/site-packages/celery/app/trace.py", line 453, in trace_task
    R = retval = fun(*args, **kwargs)
  File "{ROOT}/scheduling/execution/attempts.py", line 118, in call_body
    return job.run(*args, **kwargs)
  File "{ROOT}/app/tasks.py", line 12, in collect
    parse(page)
  File "{ROOT}/app/parsing.py", line 40, in parse
    return [float(x) for x in page]
  File "{ROOT}/app/parsing.py", line 40, in <listcomp>
    return [float(x) for x in page]
            ^^^^^^^^
  File "/usr/lib/python3.11/json/decoder.py", line 337, in decode
    obj, end = self.raw_decode(s)
ValueError: could not convert
'''
CHAINED = f'''Traceback (most recent call last):
  File "{ROOT}/app/parsing.py", line 9, in inner
    x
KeyError: 'x'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "{ROOT}/app/tasks.py", line 3, in outer
    y
RuntimeError: 2
  File "{ROOT}/app/made_up.py", line 1, in the_message
'''


class TestThePlace:
    def test_it_is_the_innermost_frame_of_the_projects_own_code(self) -> None:
        assert place_of(VALUE_ERROR) == "app/parsing.py:parse"

    def test_an_edit_above_it_does_not_move_it(self) -> None:
        assert place_of(VALUE_ERROR.replace("line 40", "line 41")) == place_of(VALUE_ERROR)

    def test_of_chained_errors_it_is_the_last_ones_and_no_message_can_fake_it(self) -> None:
        assert place_of(CHAINED) == "app/tasks.py:outer"

    def test_a_call_into_the_engine_is_the_callers(self) -> None:
        text = VALUE_ERROR.replace("/usr/lib/python3.11/json/decoder.py",
                                   f"{ROOT}/scheduling/runs/enqueueing.py")  # fmt: skip
        assert place_of(text) == "app/parsing.py:parse"

    def test_without_own_code_it_is_the_innermost_frame_there_is(self) -> None:
        text = VALUE_ERROR.replace(f"{ROOT}/app", "/opt/site-packages/lib")
        assert place_of(text) == "decoder.py:decode"

    @pytest.mark.parametrize(
        "text", ["", "no traceback", "Traceback (most recent call last):\n", "\0" * 9, "\ud800"]
    )
    def test_without_a_traceback_there_is_none(self, text: str) -> None:
        assert place_of(text) == ""

    def test_a_message_of_many_megabytes_costs_little(self) -> None:
        assert place_of(VALUE_ERROR + "Traceback " * 5_000_000) == "app/parsing.py:parse"

    @pytest.mark.parametrize(
        ("error", "traceback", "place"),
        [
            (SoftTimeLimitExceeded(), VALUE_ERROR, "(time limit)"),
            (WorkerLostError("gone"), "", "(worker lost)"),
        ],
    )
    def test_where_a_blow_from_outside_fell_says_nothing(
        self, error: Exception, traceback: str, place: str
    ) -> None:
        assert described(f"{type(error).__name__}: x", traceback)["n_place"] == place


class TestTheType:
    @pytest.mark.parametrize(
        ("error", "name"),
        [
            ("ValueError: a: b", "ValueError"),
            ("KeyError", "KeyError"),
            ("Unspeakable (it cannot say more)", "Unspeakable"),
            ("rejected by the job: no use", "Failed"),
            ("", "Failed"),
        ],
    )
    def test_it_is_what_the_error_begins_with(self, error: str, name: str) -> None:
        assert type_of(error) == name

    def test_no_name_is_too_long_or_too_odd_for_its_columns(self) -> None:
        parts = described(f"{'Ä' * 10_000}: \0 \ud800" + "x" * 9_999, VALUE_ERROR, "p" * 999)
        assert [len(parts[f"n_{name}"]) for name in ("exception", "place")] == [200, 300]
        assert "\0" not in parts["n_error"]


def test_a_group_has_the_same_id_everywhere() -> None:
    assert str(group_id("a", "b", "c")) == "8badde10-c760-e9b7-02de-fb4b5e225de7"
    assert len({group_id("a", "b", "c"), group_id("ab", "", "c"), group_id("a", "bc", "")}) == 3


def kinds() -> list[tuple[str, str, str]]:
    return list(Failure.objects.order_by("id").values_list("task", "exception", "place"))


@pytest.mark.django_db
class TestTheNote:
    def test_the_end_of_a_failed_run_is_noted_with_its_schedule(self) -> None:
        made = run(State.RUNNING, schedule_id=7, schedule_name="nightly")
        assert finish(made.pk, 1, Outcome(State.FAILED, "r", "ValueError: x", VALUE_ERROR))
        noted = Failure.objects.get()
        assert (noted.run_id, noted.schedule_id, noted.schedule_name, noted.task) == (
            made.pk, 7, "nightly", ADD,
        )  # fmt: skip
        assert (noted.exception, noted.place, noted.error) == (
            "ValueError", "app/parsing.py:parse", "ValueError: x",
        )  # fmt: skip

    def test_twice_is_once(self) -> None:
        made = run(State.RUNNING)
        outcome = Outcome(State.FAILED, "r", "ValueError: x")
        assert [finish(made.pk, 1, outcome) for _ in range(2)] == [True, False]
        assert Failure.objects.count() == 1

    def test_whoever_lost_the_fence_notes_nothing(self) -> None:
        made = run(State.RUNNING, attempt=2)
        assert not finish(made.pk, 1, Outcome(State.FAILED, "r", "ValueError: x"))
        assert kinds() == []

    @pytest.mark.parametrize("state", [State.SUCCEEDED, State.CANCELLED, State.SCHEDULED])
    def test_no_other_end_is_noted(self, state: State) -> None:
        made = run(State.RUNNING)
        assert finish(made.pk, 1, Outcome(state, "r", "ValueError: x", VALUE_ERROR, failed=True))
        assert kinds() == []

    def test_it_goes_back_with_the_transaction_of_the_end(self) -> None:
        made = run(State.RUNNING)
        with transaction.atomic():
            assert finish(made.pk, 1, Outcome(State.FAILED, "r", "ValueError: x"))
            transaction.set_rollback(True)
        assert kinds() == []

    @pytest.mark.parametrize(
        ("outcome", "kind"),
        [
            (lambda: failed_attempt(ADD, 1, 0, WorkerLostError("w")), ("WorkerLostError",
                                                                      "(worker lost)")),
            (lambda: refused(ADD_JOB, "arguments do not fit"), ("Failed", "(arguments)")),
            (lambda: Outcome(State.FAILED, "a \0 reason \ud800"), ("Failed", "")),
        ],
    )  # fmt: skip
    def test_an_end_without_a_traceback_has_a_kind(
        self, outcome: Callable[[], Outcome], kind: tuple[str, str]
    ) -> None:
        assert finish(run(State.RUNNING).pk, 1, outcome())
        assert kinds() == [(ADD, *kind)]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("redis_client")
class TestAJobsOwnError:
    def fail(self, task: Any, *args: Any) -> tuple[str, str, str]:
        from scheduling.registry import encode

        made = run(State.QUEUED, task=task.name, args=encode(args), max_attempts=1)
        task.__trace__ = build_tracer(task.name, task, app=current_app)
        request = {
            "id": str(made.pk), "root_id": str(made.pk), "task": task.name, "delivery_info": {},
            "hostname": "h", "is_eager": False, "retries": 0, ATTEMPT: 1,
        }  # fmt: skip
        try:
            task.__trace__(str(made.pk), [], {}, request)
        finally:
            task.__trace__ = None
        (kind,) = kinds()
        return kind

    def test_it_is_placed_in_the_job(self, tmp_path: Any) -> None:
        assert self.fail(tasks.fail, str(tmp_path / "f"), 9) == (
            tasks.fail.name, "ConnectionError", "tests/jobs/tasks.py:fail",
        )  # fmt: skip

    def test_one_that_was_caught_and_raised_as_another_is_the_others(self) -> None:
        assert self.fail(tasks.unspeakable)[1:] == (
            "Unspeakable", "tests/jobs/tasks.py:unspeakable",
        )  # fmt: skip

    def test_a_retry_that_gave_up_is_placed_too(self, tmp_path: Any) -> None:
        kind = self.fail(tasks.autoretry, str(tmp_path / "f"), 9)
        assert kind[1:] == ("ConnectionError", "tests/jobs/tasks.py:autoretry")

    def test_arguments_that_do_not_fit_are_no_place_in_the_code(self) -> None:
        assert self.fail(tasks.add, 1)[2] == "(arguments)"
