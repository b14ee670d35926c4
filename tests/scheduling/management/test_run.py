import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from pytest_django import Settings

from scheduling import clock
from scheduling.execution.claiming import claim
from scheduling.execution.finishing import finish
from scheduling.jobs import enqueue
from scheduling.management.command import user_name
from scheduling.models import Origin, Run, State
from scheduling.runs.outcomes import Outcome
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

    def test_it_is_filtered_by_task_and_by_when_runs_were_due(self) -> None:
        made(task="other")
        run = made()
        made(due_at=DUE - timedelta(hours=1))
        made(due_at=DUE + timedelta(hours=1))
        words = ("--task", SWEEP, "--since", "2026-11-20T06:00Z", "--until", "2026-11-20T07:00Z")
        assert [found["id"] for found in listed(*words)] == [str(run.id)]

    def test_durations_count_back_from_now(self) -> None:
        made()
        run = enqueue(SWEEP)
        assert [found["id"] for found in listed("--since", "15m")] == [str(run.id)]
        assert listed("--until", "365d", "--since", "366d") == []

    def test_a_time_that_ends_before_it_begins_is_refused(self) -> None:
        line = refusal("run", "list", "--since", "1h", "--until", "2h")
        assert "is not before --until" in line

    def test_nothing_says_of_what(self) -> None:
        words = ("--state", "failed", "--task", SWEEP, "--since", "1h")
        said = called("run", "list", *words).out
        assert said == f"No failed runs of task '{SWEEP}' then.\n"

    def test_a_schedule_that_was_never_there_is_an_error(self) -> None:
        assert "schedule 'nightly' does not exist" in refusal(
            "run", "list", "--schedule", "nightly"
        )

    def test_it_fits_a_terminal(self, terminal: None) -> None:
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

    def test_very_long_arguments_are_cut(self) -> None:
        run = made(args=json.dumps(["a" * 100_000, "the end"]))
        said = called("run", "show", str(run.id)).out
        assert len(said) < 5_000
        assert "the end" in said

    def test_it_says_by_how_much_a_deadline_was_missed(self) -> None:
        run = made(deadline=DUE, late_by=timedelta(minutes=3))
        assert ", missed by 3m\n" in called("run", "show", str(run.id)).out

    def test_its_errors_are_in_the_json(self) -> None:
        (error,) = json.loads(called("run", "show", str(failed().id), "--json").out)["errors"]
        assert (error["attempt"], error["error"]) == (1, "ValueError: boom")

    @pytest.mark.parametrize("action", ["show", "cancel", "replay"])
    def test_an_id_that_is_none_is_one_clear_line(self, action: str) -> None:
        assert "no run" in refusal("run", action, NOBODY)
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

    def test_it_says_what_is_not_set_off_again(self) -> None:
        link = '{"task": "t", "args": [], "kwargs": {}, "options": {}, "subtask_type": null}'
        carried = f'{{"link": [{link}], "chord": {link}}}'
        old = made(state=State.SUCCEEDED, follow_ups=carried)
        assert (
            "sets off     on success t; part of the chord of t"
            in called("run", "show", str(old.id)).out
        )
        answer = called("run", "replay", str(old.id))
        assert answer.err == (
            "not set off again: its chord, which has counted it once.\n"
            "not set off again: the follow-ups that its success has sent already.\n"
        )
        answer = called("run", "replay", str(old.id), "--follow-ups")
        assert answer.err == "not set off again: its chord, which has counted it once.\n"
        answer = called("run", "replay", "--state", "succeeded", "--again", "--follow-ups")
        assert "1 run are parts of chords: a chord counts each part once." in answer.err
        links = Run.objects.filter(origin=Origin.REPLAY).order_by("id")
        assert [bool(run.follow_ups) for run in links] == [False, True, True]

    def test_an_unfinished_one_is_refused(self) -> None:
        run = enqueue(SWEEP)
        assert "only a finished run can be replayed" in refusal("run", "replay", str(run.id))
        assert Run.objects.count() == 1


class TestReplayOfMany:
    def test_a_dry_run_says_how_many_and_when_they_were_due(self) -> None:
        made(state=State.FAILED)
        made(state=State.FAILED, due_at=DUE + timedelta(hours=2))
        made(state=State.SUCCEEDED)
        answer = called("run", "replay", "--state", "failed", "--dry-run")
        assert answer.out == (
            "would replay 2 runs: failed, due 2026-11-20 06:00 to 2026-11-20 08:00\n"
        )
        assert Run.objects.count() == 3

    def test_it_replays_what_matches_and_says_so(self) -> None:
        old = made(state=State.FAILED, schedule_name="nightly")
        made(state=State.FAILED)
        answer = called("run", "replay", "--schedule", "nightly")
        assert (answer.out, answer.err) == ("replayed 1 run: failed, of schedule 'nightly'\n", "")
        assert Run.objects.get(origin=Origin.REPLAY).replay_of == old.id

    def test_what_has_been_replayed_is_counted_and_left_out(self) -> None:
        for _ in range(2):
            made(state=State.FAILED)
        called("run", "replay", "--task", SWEEP, "--limit", "1")
        answer = called("run", "replay", "--task", SWEEP)
        assert answer.out == f"replayed 1 run: failed, of task '{SWEEP}'\n"
        assert "1 of them have already been replayed: left out" in answer.err
        answer = called("run", "replay", "--task", SWEEP, "--again", "--dry-run")
        assert answer.lines[0].startswith("would replay 2 runs")
        assert "2 of them have already been replayed: replayed once more" in answer.err

    def test_it_says_what_the_limit_left(self) -> None:
        for _ in range(3):
            made(state=State.FAILED)
        answer = called("run", "replay", "--state", "failed", "--limit", "2")
        assert answer.out.startswith("replayed 2 runs")
        assert answer.err == "1 run more: --limit N takes more at once.\n"

    def test_a_schedule_that_was_never_there_is_an_error(self) -> None:
        line = refusal("run", "replay", "--schedule", "nightly")
        assert "schedule 'nightly' does not exist" in line

    def test_a_unique_key_in_use_is_told_of(self) -> None:
        made(state=State.FAILED, unique_key="k")
        enqueue(SWEEP, unique_key="k")
        answer = called("run", "replay", "--state", "failed")
        assert answer.out.startswith("replayed 0 runs")
        assert "an unfinished run has the same unique key" in answer.err

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ([], "give the ID of a run, or select runs"),
            ([NOBODY, "--state", "failed"], "give the ID of a run, or select runs"),
            ([NOBODY, "--dry-run"], "--dry-run goes with a selection"),
            (["--state", "running"], "invalid choice: 'running'"),
            (["--since", "yesterday"], "'yesterday' is neither a duration"),
            (["--state", "failed", "--limit", "0"], "whole number from 1"),
        ],
    )
    def test_bad_input_is_one_clear_line_and_replays_nothing(
        self, words: list[str], said: str
    ) -> None:
        made(state=State.FAILED)
        assert said in refusal("run", "replay", *words)
        assert Run.objects.count() == 1


class TestPrune:
    def test_a_dry_run_says_how_many_of_each_state(self) -> None:
        for state in (State.FAILED, State.SUCCEEDED, State.SUCCEEDED):
            made(state=state, finished_at=datetime(2024, 1, 1, tzinfo=UTC))
        answer = called("run", "prune", "--dry-run")
        assert answer.out == "would delete 3 runs: 2 succeeded, 1 failed\n"
        assert Run.objects.count() == 3

    def test_it_deletes_by_age_and_state(self) -> None:
        ages = {days: clock.now() - timedelta(days=days) for days in (1, 40)}
        for state in (State.FAILED, State.SUCCEEDED):
            for finished_at in ages.values():
                made(state=state, finished_at=finished_at)
        answer = called("run", "prune", "--older-than", "30d", "--state", "failed")
        assert answer.out == "deleted 1 run: 1 failed\n"
        assert called("run", "prune", "--older-than", "30d").out == "deleted 1 run: 1 succeeded\n"
        assert called("run", "prune", "--older-than", "30d").out == "deleted 0 runs\n"
        assert Run.objects.count() == 2

    def test_without_a_period_and_with_none_in_the_settings_it_is_refused(
        self, settings: Settings
    ) -> None:
        settings.KEEP_FAILED = timedelta(0)
        assert "for ever" in refusal("run", "prune", "--state", "failed")

    @pytest.mark.parametrize(
        "words", [["--state", "queued"], ["--older-than", "0d"], ["--older-than", "30"]]
    )
    def test_bad_input_is_one_clear_line(self, words: list[str]) -> None:
        refusal("run", "prune", *words)
