from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from celery import current_app, shared_task
from kombu.utils.json import loads

from scheduling.errors import EnqueueError
from scheduling.jobs import Job
from scheduling.registry import (
    attempts_allowed,
    check_call,
    decode_error,
    encode,
    find_job,
    get_job,
    job_names,
)
from tests.jobs.tasks import add, autoretry
from tests.scheduling.ledger import ADD


@shared_task(bind=False, base=Job, max_attempts=7)
def seven() -> None: ...


@shared_task(autoretry_for=(OSError,), max_retries=None)
def without_end() -> None: ...


@shared_task(autoretry_for=(OSError,), retry_kwargs={"max_retries": 8})
def nine() -> None: ...


class TestJobs:
    def test_plain_shared_tasks_are_jobs(self) -> None:
        assert isinstance(find_job(ADD), Job)
        assert ADD in job_names()
        assert job_names() == sorted(job_names())
        assert not [name for name in job_names() if name.startswith("celery.")]

    def test_an_unknown_task_is_refused_with_the_nearest_names(self) -> None:
        with pytest.raises(EnqueueError, match=r"unknown task 'tests.jobs.tasks.ad'.*tasks\.add"):
            get_job("tests.jobs.tasks.ad")
        with pytest.raises(EnqueueError, match="no job has a similar name"):
            get_job("@@@@@@@@@@")

    def test_a_task_that_is_no_job_is_refused(self) -> None:
        tasks: dict[str, Any] = current_app.tasks
        dict.__setitem__(tasks, "tests.plain", object())
        try:
            with pytest.raises(EnqueueError, match="is not a Job"):
                get_job("tests.plain")
        finally:
            del current_app.tasks["tests.plain"]


class TestCalls:
    @pytest.mark.parametrize(
        ("args", "kwargs", "message"),
        [
            ((1,), {}, "do not fit task tests.jobs.tasks.add"),
            ((1, 2, 3), {}, "do not fit"),
            ((1,), {"z": 2}, "do not fit"),
            ((1, object()), {}, "not JSON"),
            ((1, "\ud800" * 2), {}, ""),
            ("12", {}, "must be a JSON array"),
            ((1, 2), [], "must be a JSON object"),
            ((), {1: 2, 3: 4}, "do not fit"),
        ],
    )
    def test_what_cannot_be_called_is_refused(self, args: Any, kwargs: Any, message: str) -> None:
        if not message:
            check_call(ADD, args, kwargs)  # JSON escapes it
            return
        with pytest.raises(EnqueueError, match=message):
            check_call(ADD, args, kwargs)

    def test_what_can_be_called_returns_its_job(self) -> None:
        assert check_call(ADD, (1,), {"y": 2}).name == add.name


class TestEncoding:
    def test_dates_uuids_and_decimals_survive(self) -> None:
        values = [date(2026, 11, 20), UUID(int=7), Decimal("1.10"), "\0\ud800☃", None, 1.5]
        assert loads(encode(values)) == values

    @pytest.mark.parametrize(
        "text", ["[1,", "", "x", '[{"__type__": "decimal", "__value__": "x"}]',
                 '[{"__type__": "uuid", "__value__": 5}]', '[{"__type__": "date", "__value__": 5}]',
                 '[{"__type__": "nobody", "__value__": 5}]', "[" * 200_000],
    )  # fmt: skip
    def test_a_text_that_cannot_be_read_is_described_and_never_raises(self, text: str) -> None:
        assert decode_error(text, "{}").startswith("args are not JSON")
        assert decode_error("[]", text).startswith("kwargs are not JSON")

    def test_a_text_of_another_kind_is_described(self) -> None:
        assert decode_error("5", "{}") == "args must be a JSON array: '5'"
        assert decode_error("[]", "null") == "kwargs must be a JSON object: 'null'"
        assert decode_error("[1]", '{"a": 1}') == ""


@pytest.mark.parametrize(
    ("name", "asked", "allowed"),
    [
        (ADD, None, 3),
        (ADD, 9, 9),
        ("unknown.task", None, 3),
        (seven.name, None, 7),
        (seven.name, 1, 1),
        (autoretry.name, None, 3),
        (without_end.name, None, None),
        (nine.name, None, 9),
    ],
)
def test_attempts_are_what_was_asked_for_or_declared_or_the_default(
    name: str, asked: int | None, allowed: int | None
) -> None:
    assert attempts_allowed(name, asked) == allowed
