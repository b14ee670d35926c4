import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from scheduling.execution import claim
from scheduling.finishing import Outcome, finish
from scheduling.jobs import enqueue
from scheduling.management.command import user_name
from scheduling.models import Origin, Run, State
from tests.scheduling.commands import called, refusal

SWEEP = "notifications.tasks.sweep"
NOBODY = "019a0000-0000-7000-8000-000000000000"
DUE = datetime(2026, 11, 20, 6, tzinfo=UTC)

pytestmark = pytest.mark.django_db


def made(**columns: Any) -> Run:
    values: dict[str, Any] = {"task": SWEEP, "origin": Origin.ADHOC, "queue": "celery"}
    times: dict[str, Any] = {"due_at": DUE, "run_at": DUE}
    if columns.get("state") in (State.SUCCEEDED, State.FAILED):
        times["finished_at"] = DUE
    return Run.objects.create(**{**values, **times, **columns})


def failed(error: str = "ValueError: boom", traceback: str = "") -> Run:
    run = enqueue(SWEEP, max_attempts=1)
    assert claim(run.id, 1, run.task)
    finish(run.id, 1, Outcome(State.FAILED, error, error, traceback, failed=True))
    return Run.objects.get(pk=run.pk)


def listed(*words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(called("run", "list", "--json", *words).out)
    return found


class TestList:
    def test_an_empty_one_says_what_to_do_next(self) -> None:
        assert "manage.py enqueue" in called("run", "list").out
        assert called("run", "list", "--state", "failed").out == "No failed runs.\n"
        assert listed() == []

    def test_the_newest_come_first(self) -> None:
        runs = [enqueue(SWEEP) for _ in range(3)]
        assert [run["id"] for run in listed()] == [str(run.id) for run in reversed(runs)]
        assert [run["id"] for run in listed("--limit", "1")] == [str(runs[-1].id)]

    def test_it_says_when_there_are_more(self) -> None:
        for _ in range(3):
            enqueue(SWEEP)
        assert "--limit N shows more" in called("run", "list", "--limit", "2").lines[-1]
        assert called("run", "list", "--limit", "3").lines[-1] == "Times are in UTC."

    def test_it_is_filtered_by_state_and_by_schedule(self) -> None:
        made(state=State.SUCCEEDED, schedule_name="nightly")
        other = made(schedule_name="nightly")
        made()
        assert len(listed("--schedule", "nightly")) == 2
        assert [run["id"] for run in listed("--schedule", "nightly", "--state", "scheduled")] == [
            str(other.id)
        ]

    def test_a_schedule_that_was_never_there_is_an_error(self) -> None:
        assert "there is no schedule 'nightly'" in refusal("run", "list", "--schedule", "nightly")

    def test_it_fits_a_terminal(self) -> None:
        made(schedule_name="s" * 200)
        made(task="a.task.with.a.rather.long.path.that.would.not.fit.into.the.table")
        answer = called("run", "list")
        assert max(map(len, answer.lines)) <= 100
        assert answer.lines[0].split() == ["ID", "STATE", "DUE", "TRY", "SCHEDULE", "OR", "TASK"]

    @pytest.mark.parametrize("words", [["--state", "done"], ["--limit", "0"], ["--limit", "-5"]])
    def test_bad_input_is_one_clear_line(self, words: list[str]) -> None:
        refusal("run", "list", *words)


class TestShow:
    def test_its_json_is_the_contract_s(self) -> None:
        run = made(state=State.SUCCEEDED, schedule_name="nightly", schedule_id=7)
        assert json.loads(called("run", "show", str(run.id), "--json").out) == {
            "id": str(run.id),
            "task": SWEEP,
            "schedule": "nightly",
            "origin": "adhoc",
            "state": "succeeded",
            "reason": "",
            "due_at": "2026-11-20T06:00:00Z",
            "run_at": "2026-11-20T06:00:00Z",
            "attempt": 1,
            "max_attempts": 3,
            "queued_at": None,
            "started_at": None,
            "finished_at": "2026-11-20T06:00:00Z",
            "errors": [],
        }

    def test_a_run_of_a_task_that_is_gone_can_be_shown(self) -> None:
        assert called("run", "show", str(made(task="gone.tasks.away").id)).code == 0

    def test_each_failed_attempt_has_its_traceback(self) -> None:
        run = failed(traceback='Traceback\n  File "jobs.py"\n\x1b[31mValueError: boom')
        answer = called("run", "show", str(run.id))
        assert f"Run {run.id}" in answer.out
        assert "  state        failed: ValueError: boom" in answer.out
        assert "\nAttempt 1, 20" in answer.out
        assert '\n      File "jobs.py"\n' in answer.out
        assert "\x1b" not in answer.out

    def test_it_says_by_how_much_a_deadline_was_missed(self) -> None:
        run = made(deadline=DUE, late_by=timedelta(minutes=3))
        assert ", missed by 3m\n" in called("run", "show", str(run.id)).out

    def test_its_errors_are_in_the_json(self) -> None:
        (error,) = json.loads(called("run", "show", str(failed().id), "--json").out)["errors"]
        assert (error["attempt"], error["error"]) == (1, "ValueError: boom")

    @pytest.mark.parametrize("action", ["show", "cancel", "replay"])
    def test_an_id_that_is_none_is_one_clear_line(self, action: str) -> None:
        assert "there is no run" in refusal("run", action, NOBODY)
        assert "is not a run's id" in refusal("run", action, "17")


class TestCancel:
    def test_a_waiting_run_is_cancelled_at_once(self) -> None:
        run = enqueue(SWEEP, after=timedelta(hours=1))
        answer = called("run", "cancel", str(run.id))
        assert answer.out == f"cancelled {run.id}: it had not started\n"
        run.refresh_from_db()
        assert (run.state, run.reason) == (State.CANCELLED, f"cancelled by {user_name()}")

    def test_a_running_one_is_told(self) -> None:
        run = enqueue(SWEEP)
        assert claim(run.id, 1, run.task)
        answer = called("run", "cancel", str(run.id))
        assert answer.out.startswith("asked the worker ")
        run.refresh_from_db()
        assert (run.state, run.cancel_requested_by) == (State.RUNNING, user_name())

    def test_a_finished_one_is_refused(self) -> None:
        assert "already" in refusal("run", "cancel", str(failed().id))


class TestReplay:
    def test_it_prints_the_new_run_s_id(self) -> None:
        old = failed()
        answer = called("run", "replay", str(old.id))
        new = Run.objects.get(pk=UUID(answer.lines[0]))
        assert (new.origin, new.replay_of, new.state) == ("replay", old.id, State.SCHEDULED)
        assert new.enqueued_by == user_name()

    def test_an_unfinished_one_is_refused(self) -> None:
        run = enqueue(SWEEP)
        assert "only a finished run can be replayed" in refusal("run", "replay", str(run.id))
        assert Run.objects.count() == 1
