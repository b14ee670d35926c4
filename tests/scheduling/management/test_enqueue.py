from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from django.test import override_settings

from scheduling.management.command import user_name
from scheduling.models import Priority, Run, State
from tests.scheduling.commands import Answer, called, refusal

SWEEP = "notifications.tasks.sweep"

pytestmark = pytest.mark.django_db


def enqueued(*words: str) -> tuple[Run, Answer]:
    answer = called("enqueue", SWEEP, *words)
    assert answer.code == 0, answer.err
    (line,) = answer.lines
    return Run.objects.get(pk=UUID(line)), answer


def test_it_prints_the_id_alone() -> None:
    run, answer = enqueued()
    assert (run.state, run.args, run.kwargs) == (State.SCHEDULED, "[]", "{}")
    assert run.enqueued_by == user_name()
    assert answer.err == ""


def test_it_takes_every_option() -> None:
    run, _ = enqueued(
        *("--args", '["2026-11-20"]', "--at", "2086-01-01T06:00+01:00", "--priority", "front"),
        *("--deadline", "2086-01-01T06:00Z", "--expires", "2086-01-02", "--queue", "mail"),
        *("--unique-key", "sweep", "--max-attempts", "7"),
    )
    assert (run.args, run.queue, run.priority) == ('["2026-11-20"]', "mail", Priority.FRONT)
    assert run.due_at == run.run_at == datetime(2086, 1, 1, 5, tzinfo=UTC)
    assert run.deadline == datetime(2086, 1, 1, 6, tzinfo=UTC)
    assert run.expires_at == datetime(2086, 1, 2, tzinfo=UTC)
    assert (run.unique_key, run.max_attempts) == ("sweep", 7)


def test_durations_count_from_now() -> None:
    run, _ = enqueued("--in", "2h", "--deadline", "1d", "--expires", "1w")
    assert run.deadline is not None
    assert run.expires_at is not None
    assert abs(run.run_at - run.created_at - timedelta(hours=2)) < timedelta(seconds=5)
    assert abs(run.deadline - run.created_at - timedelta(days=1)) < timedelta(seconds=5)
    assert abs(run.expires_at - run.created_at - timedelta(weeks=1)) < timedelta(seconds=5)


@override_settings(TIME_ZONE="Europe/Berlin")
def test_times_without_an_offset_are_the_project_s() -> None:
    run, answer = enqueued("--at", "2086-10-27T02:30")
    assert run.due_at == datetime(2086, 10, 27, 0, 30, tzinfo=UTC)
    assert "2086-10-27 02:30:00 occurs twice in Europe/Berlin" in answer.err


def test_a_time_in_the_past_runs_at_once_and_says_so() -> None:
    run, answer = enqueued("--at", "2020-01-01")
    assert run.due_at == datetime(2020, 1, 1, tzinfo=UTC)
    assert "is in the past: it runs at once" in answer.err


def test_a_unique_key_finds_the_unfinished_run() -> None:
    run, _ = enqueued("--unique-key", "sweep", "--in", "1h")
    found, answer = enqueued("--unique-key", "sweep")
    assert found == run
    assert answer.err == f"run {run.id} has this key and is scheduled: no run was added.\n"
    assert Run.objects.count() == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["notifications.tasks.swep"], "did you mean 'notifications.tasks.sweep'"),
        ([SWEEP, "--args", "[1, 2, 3]"], "arguments do not fit"),
        ([SWEEP, "--kwargs", '{"nonsense": 1}'], "arguments do not fit"),
        ([SWEEP, "--args", "[1"], "'[1' is not JSON"),
        ([SWEEP, "--args", "{}"], "is not a JSON array"),
        ([SWEEP, "--kwargs", "[]"], "is not a JSON object"),
        ([SWEEP, "--kwargs", '{"on": NaN}'], "NaN is not a JSON number"),
        ([SWEEP, "--in", "90"], "'90' is not a duration"),
        ([SWEEP, "--in", "-90s"], "'-90s' is not a duration"),
        ([SWEEP, "--in", "3000000d"], "is out of range"),
        ([SWEEP, "--at", "soon"], "'soon' is not an ISO 8601 time"),
        ([SWEEP, "--at", "2086-01-01", "--in", "2h"], "not allowed with argument"),
        ([SWEEP, "--priority", "urgent"], "invalid choice: 'urgent'"),
        ([SWEEP, "--max-attempts", "0"], "is not a whole number from 1"),
        ([SWEEP, "--max-attempts", "-3"], "is not a whole number from 1"),
        ([SWEEP, "--expires", "2020-01-01"], "--expires 2020-01-01 00:00:00 UTC"),
        ([SWEEP, "--expires", "1h", "--in", "2h"], "is not after the start"),
        ([SWEEP, "--deadline", "1h", "--in", "2h"], "is not after the start"),
        ([SWEEP, "--deadline", "never"], "neither a duration"),
        ([SWEEP, "--unique-key", ""], "unique_key must have 1 to 255 characters"),
        ([SWEEP, "--wait", "soon"], "is not a number of seconds"),
        ([SWEEP, "--wait", "-1"], "is not a number of seconds"),
        (["--wait", SWEEP], "put the option last"),
        ([SWEEP, "--unknown"], "unrecognized arguments: --unknown"),
        ([], "the following arguments are required: TASK"),
        (["two\nlines"], r"unknown task 'two\nlines'"),
        ([SWEEP, "--unique-key", "\udcff"], "no lone surrogate: '\\udcff'"),
    ],
)
def test_bad_input_is_one_clear_line_and_nothing_is_changed(words: list[str], message: str) -> None:
    assert message in refusal("enqueue", *words)
    assert not Run.objects.exists()
