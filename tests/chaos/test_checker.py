"""The checker, given histories with one breach each: it must name the breach."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from chaos import story as stories
from chaos.checker import check
from chaos.evidence import Line
from chaos.oracle import Cron, Every, Off
from chaos.report import report
from chaos.story import Anew, Asked, Cancel, Done, Fill, Phase, Replay, Row, Schedule, Step, Story

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
LOST = {"attempt": 1, "error": "WorkerLostError: its lease ran out"}
TODAY, TOMORROW = Off("UTC", ["2026-11-20"], "skip"), Off("UTC", ["2026-11-21"], "skip")


def second(count: float) -> datetime:
    return NOON + timedelta(seconds=count)


def schedule(**fields: Any) -> Schedule:
    """A schedule that fires at 10, 20 and 30 seconds, and is stopped at 35."""
    rule = Every(10, NOON, with_anchor=False)
    values: dict[str, Any] = {
        "id": 1, "name": "every-0", "catch_up": "latest", "catch_up_window": None,
        "overlap": "allow", "spread": 0, "max_attempts": None,
        "phases": [Phase(second(1), second(35), rule)],
    }  # fmt: skip
    return Schedule(**{**values, **fields})


def row(name: str, due: float, **fields: Any) -> Row:
    values: dict[str, Any] = {
        "id": name, "schedule_id": 1, "origin": "schedule", "task": "chaos.tasks.work",
        "token": "every-0", "due_at": second(due), "run_at": second(due), "state": "succeeded",
        "reason": "", "attempt": 1, "failures": 0, "max_attempts": None, "coalesced": 0,
        "created_at": second(due + 0.01), "finished_at": second(due + 1), "expires_at": None,
        "unique_key": None, "errors": [], "result_status": "SUCCESS", "result": "1",
    }  # fmt: skip
    return Row(**{**values, **fields})


def line(run: str, what: str, at: float, attempt: int = 1, **fields: Any) -> Line:
    when = second(at).timestamp()
    return replace(
        Line(what, run, attempt, "every-0", NOON, when, "worker0", 7),
        **fields,
    )


def good(**changes: Row) -> Story:
    """Three occurrences, each with its run; `changes` replaces rows by their names."""
    rows = {"a": row("a", 10), "b": row("b", 20), "c": row("c", 30)} | changes
    lines = [
        found
        for each in rows.values()
        for found in (
            line(each.id, "start", (each.due_at - NOON).total_seconds() + 0.5, each.attempt),
            line(each.id, "end", (each.due_at - NOON).total_seconds() + 0.9, each.attempt),
        )
        if each.state != "skipped"
    ]
    return Story(7, 30, [schedule()], rows=list(rows.values()), lines=lines)


def laws(story: Story) -> list[str]:
    return [breach.law for breach in check(story)]


def told(story: Story) -> str:
    return "\n".join(map(str, check(story)))


def test_it_has_nothing_to_say_where_all_went_well() -> None:
    assert check(good()) == []


class TestWindows:
    def test_a_missing_run_is_named(self) -> None:
        story = good()
        story.rows.pop(1)
        story.lines = [line for line in story.lines if line.run != "b"]
        assert told(story).startswith("missing: every-0: 1 without a run: 12:00:20.000000 before")

    def test_a_missing_last_run_is_named(self) -> None:
        story = good()
        story.rows.pop()
        story.lines = [line for line in story.lines if line.run != "c"]
        assert "missing: every-0: 1 without a run: 12:00:30.000000 until" in told(story)

    def test_a_run_that_stands_for_missed_ones_explains_them(self) -> None:
        story = good(b=row("b", 20, coalesced=1, created_at=second(31)))
        story.rows.pop()
        story.lines = [line for line in story.lines if line.run != "c"]
        assert check(story) == []

    def test_what_is_counted_before_it_was_due_is_early(self) -> None:
        story = good(b=row("b", 20, coalesced=1))
        story.rows.pop()
        story.lines = [line for line in story.lines if line.run != "c"]
        assert laws(story) == ["early"]

    def test_what_is_counted_and_has_a_run_too_is_doubled(self) -> None:
        assert "doubled" in laws(good(b=row("b", 20, coalesced=1, created_at=second(31))))

    def test_two_rows_of_one_instant_are_doubled(self) -> None:
        assert "doubled" in laws(good(d=row("d", 20)))

    def test_a_row_between_the_instants_is_unexplained(self) -> None:
        assert "unexplained row" in laws(good(d=row("d", 25)))

    def test_a_row_while_it_was_paused_is_unexplained(self) -> None:
        story = good()
        (phase,) = story.schedules[0].phases
        story.schedules[0].phases = [
            replace(phase, until=second(15)),
            Phase(second(15), second(25), None),
            replace(phase, since=second(25)),
        ]
        assert laws(story) == ["unexplained row"]

    def test_what_was_due_before_an_edit_and_never_ran_is_missing(self) -> None:
        story = good()
        (phase,) = story.schedules[0].phases
        story.schedules[0].phases = [
            replace(phase, until=second(20)),
            Phase(second(20), second(99), None),
        ]
        story.rows = story.rows[:1]
        story.lines = [line for line in story.lines if line.run == "a"]
        assert laws(story) == ["missing"]

    def test_only_the_first_of_those_due_at_an_edit_was_planned(self) -> None:
        story = good(a=row("a", 10, created_at=second(36)))
        story.rows = story.rows[:1]
        story.lines = [line for line in story.lines if line.run == "a"]
        assert check(story) == []

    def test_a_row_of_another_schedule_is_unexplained(self) -> None:
        assert "unexplained row" in laws(good(d=row("d", 20, schedule_id=2)))


class TestDaysOff:
    def off(self, off: Off, **fields: Any) -> Story:
        story = good(b=row("b", 20, **fields))
        story.schedules[0].phases[0].off = off
        return story

    SKIPPED: ClassVar[dict[str, Any]] = {
        "state": "skipped", "reason": "calendar 'x': 2026-11-20 chaos", "result_status": None,
    }  # fmt: skip

    def all_skipped(self) -> Story:
        rows = {
            name: row(name, at, **self.SKIPPED) for name, at in (("a", 10), ("b", 20), ("c", 30))
        }
        story = good(**rows)
        story.schedules[0].phases[0].off = TODAY
        return story

    def test_what_runs_on_a_day_off_is_named(self) -> None:
        assert laws(self.off(TODAY, **self.SKIPPED)) == ["day off", "day off"]

    def test_what_is_skipped_on_a_working_day_is_named(self) -> None:
        assert laws(self.off(TOMORROW, **self.SKIPPED)) == ["day off"]
        assert laws(self.off(TOMORROW)) == []

    def test_a_day_off_on_which_all_is_skipped_is_right(self) -> None:
        assert check(self.all_skipped()) == []

    def test_one_that_is_not_even_recorded_is_missing(self) -> None:
        story = self.all_skipped()
        story.rows.pop(1)
        assert laws(story) == ["missing"]

    def test_what_has_moved_to_another_day_is_not_expected_here(self) -> None:
        story = self.off(Off("UTC", ["2026-11-20"], "next"))
        assert set(laws(story)) == {"unexplained row"}


class TestStarts:
    def test_an_early_start_is_named(self) -> None:
        story = good()
        story.lines[0] = line("a", "start", 9.9)
        assert (
            told(story) == "early: run a (every-0, due 12:00:10.000000) started at 12:00:09.900000"
        )

    def test_a_start_before_its_spread_is_early(self) -> None:
        story = good(a=row("a", 10, run_at=second(12)))
        story.schedules[0].spread = 3
        assert laws(story) == ["early"]

    def test_a_spread_beyond_the_policy_is_named(self) -> None:
        story = good(a=row("a", 10, run_at=second(10.2)))
        assert laws(story) == ["early"]

    def test_an_attempt_that_starts_twice_is_doubled(self) -> None:
        story = good()
        story.lines.append(line("a", "start", 10.7))
        assert (
            told(story) == "doubled: run a (every-0, due 12:00:10.000000): attempt 1 started twice"
        )

    def second_attempt(self, **fields: Any) -> Story:
        story = good(a=row("a", 10, attempt=2, result="2", **fields))
        story.lines.append(line("a", "start", 10.2))
        return story

    def test_a_second_attempt_that_nothing_explains_is_doubled(self) -> None:
        found = told(self.second_attempt())
        assert found.startswith("doubled: run a")
        assert "no entry says how attempt 1" in found

    def test_a_lost_lease_explains_a_second_attempt(self) -> None:
        assert check(self.second_attempt(errors=[LOST], failures=1)) == []

    def test_a_worker_that_was_told_to_stop_explains_a_second_attempt(self) -> None:
        story = self.second_attempt()
        at = second(10.3).timestamp()
        story.faults = [Done("stop_worker", "0", at, at, "worker0")]
        assert check(story) == []

    @pytest.mark.parametrize(("at", "explained"), [(10.3, True), (10.1, False), (10.6, False)])
    def test_a_worker_that_starts_itself_anew_explains_one_between(
        self, at: float, explained: bool
    ) -> None:
        story = self.second_attempt()
        story.anew = [Anew("worker0", second(at).timestamp())]
        assert (check(story) == []) == explained

    @pytest.mark.parametrize(("run", "explained"), [("a", True), ("b", False)])
    def test_a_run_that_is_handed_back_is_explained_and_no_other(
        self, run: str, explained: bool
    ) -> None:
        story = self.second_attempt()
        story.anew = [Anew("worker0", second(10.3).timestamp(), run)]
        assert (check(story) == []) == explained

    def test_the_end_of_another_worker_explains_nothing(self) -> None:
        story = self.second_attempt()
        story.anew = [Anew("worker1", second(10.3).timestamp())]
        story.faults = [Done("stop_worker", "2", NOON.timestamp(), NOON.timestamp(), "worker2")]
        assert laws(story) == ["doubled"]

    @pytest.mark.parametrize(("frozen", "twice"), [("worker0 7", False), ("worker1 7", True)])
    def test_an_attempt_that_is_at_work_when_the_next_starts_is_named_unless_it_was_frozen(
        self, frozen: str, twice: bool
    ) -> None:
        story = self.second_attempt(errors=[LOST], failures=1)
        story.lines.append(line("a", "end", 10.7))
        at = second(10.3).timestamp()
        story.faults = [Done("freeze_worker", "0", at, at + 0.1, frozen)]
        assert laws(story) == (["twice"] if twice else [])

    def test_a_lost_lease_of_another_attempt_explains_nothing(self) -> None:
        lost = {"attempt": 2, "error": "WorkerLostError: its lease ran out"}
        assert laws(self.second_attempt(errors=[lost], failures=1)) == ["doubled"]

    def test_a_second_attempt_before_the_first_was_given_up_is_doubled(self) -> None:
        lost = LOST | {"ended_at": second(10.6).isoformat()}
        assert laws(self.second_attempt(errors=[lost], failures=1)) == ["doubled"]
        lost = LOST | {"ended_at": second(10.4).isoformat()}
        assert laws(self.second_attempt(errors=[lost], failures=1)) == []

    def test_a_retry_before_its_own_time_is_early(self) -> None:
        story = self.second_attempt(errors=[LOST], failures=1, run_at=second(10.6))
        assert laws(story) == ["early"]

    def test_a_claim_before_its_time_is_early_whatever_the_job_says(self) -> None:
        assert laws(good(a=row("a", 10, started_at=second(9.99)))) == ["early"]

    def test_a_run_with_one_attempt_never_starts_twice(self) -> None:
        story = self.second_attempt(errors=[LOST], failures=0, max_attempts=1)
        assert "doubled" in laws(story)

    def test_a_start_that_the_ledger_knows_nothing_of_is_named(self) -> None:
        story = good()
        story.lines.append(line("a", "start", 11, 2))
        assert "fence" in laws(story)

    def test_evidence_of_no_row_is_a_phantom(self) -> None:
        story = good()
        story.lines.append(line("z", "start", 11))
        assert laws(story) == ["phantom"]


class TestEnds:
    @pytest.mark.parametrize("state", ["scheduled", "held", "queued", "running"])
    def test_a_run_that_is_not_final_is_named(self, state: str) -> None:
        found = told(good(b=row("b", 20, state=state, finished_at=None)))
        assert found == f"not final: run b (every-0, due 12:00:20.000000) is {state}"

    @pytest.mark.parametrize(
        "fields",
        [
            {"state": "failed", "failures": 2, "result_status": "FAILURE"},
            {"state": "cancelled"},
            {"state": "expired"},
            {"state": "expired", "expires_at": second(50)},
            {"state": "skipped", "reason": "overlap: an earlier run is unfinished"},
            {"state": "skipped", "reason": "missed: noticed late"},
            {"state": "skipped"},
        ],
        ids=str,
    )
    def test_an_end_that_nothing_explains_is_named(self, fields: dict[str, Any]) -> None:
        assert "unexplained end" in laws(good(b=row("b", 20, **fields)))

    def test_the_end_of_all_attempts_is_explained(self) -> None:
        assert check(self.failed()) == []

    def failed(self) -> Story:
        errors = [{"attempt": n, "error": "Deliberate: no"} for n in (1, 2, 3)]
        story = good(b=row("b", 20, state="failed", failures=3, attempt=3, errors=errors,
                           result_status="FAILURE"))  # fmt: skip
        story.lines += [line("b", "fail", 20.7, attempt) for attempt in (1, 2, 3)]
        return story

    def test_a_failure_that_the_job_knows_nothing_of_is_named(self) -> None:
        story = self.failed()
        story.lines.pop()
        assert laws(story) == ["no evidence"]

    def test_what_did_not_run_must_say_why(self) -> None:
        story = good(b=row("b", 20, state="expired", expires_at=second(20.5)))
        story.lines = [line for line in story.lines if line.run != "b"]
        assert "it says not why" in told(story)
        story.rows[1].reason = "expired"
        assert check(story) == []

    def test_an_expired_run_that_started_is_named(self) -> None:
        fields = {"state": "expired", "reason": "expired", "expires_at": second(20.5)}
        assert laws(good(b=row("b", 20, **fields))) == ["unexplained start"]

    def test_a_start_after_the_expiry_is_named(self) -> None:
        assert laws(good(b=row("b", 20, expires_at=second(20.2), started_at=second(20.3)))) == [
            "unexplained start"
        ]

    def test_one_that_expired_before_its_second_attempt_is_explained(self) -> None:
        story = good(b=row("b", 20, state="expired", reason="expired", attempt=2, failures=1,
                           errors=[LOST], expires_at=second(20.8)))  # fmt: skip
        story.lines = [replace(line, attempt=1) for line in story.lines]
        assert check(story) == []

    @pytest.mark.parametrize(
        ("deadline", "late_by", "told"),
        [(20.5, None, True), (20.5, 0.1, True), (20, None, False), (20, 0.1, True),
         (20, 0.3, False), (None, 0.1, False)],
    )  # fmt: skip
    def test_how_late_it_was_for_its_deadline_must_be_written_down(
        self, deadline: float | None, late_by: float | None, told: bool
    ) -> None:
        missed = {(20.5, None), (20, 0.3)}
        story = good(b=row("b", 20, started_at=second(20.3), late_by=late_by,
                           deadline=None if deadline is None else second(deadline)))  # fmt: skip
        assert laws(story) == ([] if (deadline, late_by) in missed else ["deadline"])

    def test_a_success_without_evidence_is_named(self) -> None:
        story = good()
        story.lines = [line for line in story.lines if (line.run, line.what) != ("b", "end")]
        assert laws(story) == ["no evidence"]

    def test_the_result_of_another_attempt_breaks_the_fence(self) -> None:
        assert laws(good(b=row("b", 20, result="2"))) == ["fence"]

    def test_an_error_that_no_fault_explains_is_named(self) -> None:
        errors = [{"attempt": 1, "error": "OperationalError: the connection is closed"}]
        story = good(b=row("b", 20, errors=errors, attempt=2, result="2"))
        assert laws(story) == ["unexplained error"]

    @pytest.mark.parametrize(("most", "named"), [(1, []), (2, ["unexplained error"])])
    def test_a_run_that_its_worker_gave_up_fails_only_if_it_must_not_start_twice(
        self, most: int, named: list[str]
    ) -> None:
        text = "its worker had to end; not tried again, since one attempt is allowed"
        lost = row(
            "b", 20, state="failed", errors=[{"attempt": 1, "error": text}], max_attempts=most
        )
        assert [law for law in laws(good(b=lost)) if law == "unexplained error"] == named

    def test_a_beat_that_ended_by_itself_is_named(self) -> None:
        story = good()
        story.ended_by_themselves = ["worker2 at 1.0", "beat1 at 1.0"]
        assert laws(story) == ["beat ended"]

    @pytest.mark.parametrize(
        ("made", "start", "priority", "raised"),
        [(10, 45, 0, True), (10, 45, 3, False), (10, 25, 3, True), (40, 45, 3, True)],
    )
    def test_one_that_was_late_for_long_and_never_at_the_front_is_named(
        self, made: float, start: float, priority: int, raised: bool
    ) -> None:
        late = row("a", 10, created_at=second(made), started_at=second(start), priority=priority,
                   deadline=second(12), late_by=start - 12)  # fmt: skip
        assert laws(good(a=late)) == ([] if raised else ["deadline"])


class TestOverlap:
    def overlapping(self) -> Story:
        story = good(a=row("a", 10, finished_at=second(25)))
        story.schedules[0].overlap = "queue"
        return story

    def test_two_at_a_time_are_named(self) -> None:
        assert laws(self.overlapping()) == ["overlap"]

    def test_one_that_waited_is_not(self) -> None:
        story = self.overlapping()
        story.rows[1].finished_at = second(26)
        story.lines = [
            replace(each, at=each.at + 5) if each.run == "b" else each for each in story.lines
        ]
        assert check(story) == []

    def test_one_that_was_skipped_for_nothing_is_named(self) -> None:
        reason = "overlap: an earlier run is unfinished"
        story = good(b=row("b", 40, state="skipped", reason=reason))
        story.rows.pop()
        story.schedules[0].overlap = "skip"
        story.schedules[0].phases[0].until = second(45)
        assert "unexplained end" in laws(story)


class TestCalls:
    def called(self, ended: str, rows: int, **fields: Any) -> Story:
        asked = Asked("call-0", second(5).timestamp(), ended)
        made = [
            row(f"x{n}", 5, origin="adhoc", schedule_id=None, token="call-0", **fields)
            for n in range(rows)
        ]
        lines = [line(each.id, what, 6) for each in made for what in ("start", "end")]
        return Story(7, 30, [], [asked], made, lines=lines)

    @pytest.mark.parametrize(
        ("ended", "rows"),
        [("committed", 1), ("rolled_back", 0), ("unknown", 0), ("unknown", 1)],
    )
    def test_what_was_committed_and_nothing_else_has_a_run(self, ended: str, rows: int) -> None:
        assert check(self.called(ended, rows)) == []

    @pytest.mark.parametrize(
        ("ended", "rows", "law"),
        [
            ("committed", 0, "missing"),
            ("committed", 2, "missing"),
            ("rolled_back", 1, "unexplained row"),
            ("unknown", 2, "doubled"),
        ],
    )
    def test_what_differs_is_named(self, ended: str, rows: int, law: str) -> None:
        assert laws(self.called(ended, rows)) == [law]

    def test_a_run_that_nobody_asked_for_is_named(self) -> None:
        story = self.called("committed", 1)
        story.asked = []
        assert laws(story) == ["unexplained row"]

    def test_a_start_before_the_time_that_was_asked_for_is_early(self) -> None:
        story = self.called("committed", 1)
        story.asked[0].not_before = second(7).timestamp()
        assert "early" in laws(story)

    def test_two_unfinished_runs_with_one_key_are_named(self) -> None:
        story = self.called("committed", 1, unique_key="k")
        story.asked.append(Asked("call-1", second(5).timestamp(), "committed"))
        story.rows.append(replace(story.rows[0], id="y", token="call-1"))
        story.rows[0].finished_at = second(9)
        story.lines += [line("y", "start", 8), line("y", "end", 8.5)]
        assert laws(story) == ["overlap"]

    def found(self, **fields: Any) -> Story:
        story = self.called("committed", 1, unique_key="k")
        asked = Asked("call-1", second(5).timestamp(), "found", unique_key="k", found="x0",
                      began=second(5).timestamp())  # fmt: skip
        story.asked.append(replace(asked, **fields))
        return story

    def test_a_call_that_finds_an_unfinished_run_of_its_key_is_right(self) -> None:
        assert check(self.found()) == []

    @pytest.mark.parametrize(
        "fields", [{"found": "y"}, {"unique_key": "l"}, {"began": second(7).timestamp()}], ids=str
    )
    def test_a_call_that_finds_another_or_one_that_has_ended_is_named(
        self, fields: dict[str, Any]
    ) -> None:
        assert laws(self.found(**fields)) == ["key"]


class TestRequests:
    def cancelled(self, state: str = "cancelled", **fields: Any) -> Story:
        reason = "cancelled by chaos" if state == "cancelled" else ""
        story = good(b=row("b", 20, state=state, reason=reason))
        story.cancels = [Cancel("b", granted=True, **fields)]
        return story

    def test_a_cancel_explains_an_end(self) -> None:
        assert check(self.cancelled(attempt=1)) == []

    def test_a_cancel_without_an_answer_promises_nothing(self) -> None:
        story = self.cancelled("succeeded")
        story.cancels[0].granted = False
        assert check(story) == []

    def test_one_that_waited_and_started_all_the_same_is_named(self) -> None:
        assert laws(self.cancelled(attempt=1, waited=True)) == ["cancel"]

    def test_one_that_waited_and_succeeded_is_named(self) -> None:
        assert "cancel" in laws(self.cancelled("succeeded", attempt=2, waited=True))

    def test_another_attempt_after_a_cancel_is_named(self) -> None:
        story = self.cancelled(attempt=1)
        story.rows[1].attempt, story.rows[1].errors = 2, [LOST]
        story.lines.append(line("b", "start", 20.95, 2))
        assert laws(story) == ["cancel"]

    def replayed(self, made: str | None, *rows: str) -> Story:
        story = good()
        story.replays = [Replay("a", made)]
        for name in rows:
            story.rows.append(row(name, 10, origin="replay", run_at=second(20), replay_of="a"))
            story.lines += [line(name, "start", 21), line(name, "end", 22)]
        return story

    @pytest.mark.parametrize(("made", "rows"), [("r", ["r"]), (None, []), (None, ["r"])])
    def test_a_replay_is_one_run(self, made: str | None, rows: list[str]) -> None:
        assert check(self.replayed(made, *rows)) == []

    @pytest.mark.parametrize(
        ("made", "rows", "law"),
        [("r", [], "missing"), ("r", ["r", "q"], "unexplained row"),
         (None, ["r", "q"], "unexplained row"), ("r", ["q"], "missing")],
    )  # fmt: skip
    def test_another_number_of_replays_is_named(
        self, made: str | None, rows: list[str], law: str
    ) -> None:
        assert laws(self.replayed(made, *rows))[0] == law

    def test_a_replay_before_its_time_is_early(self) -> None:
        story = self.replayed("r", "r")
        story.rows[-1].run_at = second(21.5)
        assert laws(story) == ["early"]


class TestBackfills:
    """Of 10 and 20 seconds, at 25; its first run takes the place of none."""

    def filled(self, *dues: float, began: float = 26, **fields: Any) -> Story:
        story = good(c=row("c", 30, created_at=second(60)))
        fill = Fill(
            "f", 1, "every-0", Every(10, NOON, with_anchor=False), None, second(5), second(20),
            1, True, second(25),
        )  # fmt: skip
        story.fills = [replace(fill, **fields)]
        for place, due in enumerate(dues):
            name, start = f"f{place}", began + place
            story.rows.append(
                row(name, due, origin="backfill", backfill_id="f", run_at=second(26),
                    finished_at=second(start + 0.9), started_at=second(start))
            )  # fmt: skip
            story.lines += [line(name, "start", start + 0.1), line(name, "end", start + 0.8)]
        return story

    def test_a_run_for_each_occurrence_is_right(self) -> None:
        assert check(self.filled(10, 20)) == []

    def test_an_occurrence_without_a_run_is_missing(self) -> None:
        story = self.filled(20)
        assert laws(story) == ["missing"]

    def test_what_has_succeeded_may_be_left_out_unless_again_is_asked_for(self) -> None:
        assert check(self.filled(20, again=False)) == []

    def test_what_had_failed_may_not_be_left_out(self) -> None:
        story = self.filled(20, again=False)
        story.rows[0].finished_at, story.rows[0].state = second(12), "cancelled"
        story.cancels, story.rows[0].reason = [Cancel("a")], "cancelled"
        assert laws(story) == ["missing"]

    def test_two_runs_of_one_occurrence_are_doubled(self) -> None:
        assert laws(self.filled(10, 20, 20)) == ["doubled"]

    def test_a_run_of_another_instant_is_unexplained(self) -> None:
        assert laws(self.filled(10, 20, 30)) == ["unexplained row"]

    def test_days_off_have_none(self) -> None:
        assert "unexplained row" in laws(self.filled(10, 20, off=TODAY))
        assert laws(self.filled(off=TODAY)) == []

    def test_more_at_once_than_its_concurrency_are_named(self) -> None:
        story = self.filled(10, 20)
        story.rows[3].finished_at = second(27.5)
        assert laws(story) == ["pace"]
        story.fills[0].concurrency = 2
        assert check(story) == []

    def test_a_start_after_its_cancel_is_named(self) -> None:
        story = self.filled(10, 20, cancelled=True, cancelled_at=second(26.5).timestamp())
        assert laws(story) == ["cancel"]

    def test_its_cancel_explains_an_end(self) -> None:
        story = self.filled(10, 20, cancelled=True)
        story.rows[-1].state, story.rows[-1].reason = "cancelled", "backfill cancelled by chaos"
        assert check(story) == []

    def test_one_that_nobody_asked_for_is_named(self) -> None:
        story = self.filled(10, 20)
        story.fills = []
        assert laws(story) == ["unexplained row"]


class TestFollowUps:
    def followed(self, then: str, *followers: str, **fields: Any) -> Story:
        asked = Asked("call-0", second(5).timestamp(), "committed", then=then)
        names = ["", "/other"] if then == "chord" else [""]
        ends = {"second": 9, "third": 10} if then == "chain" else {}
        made = [
            row(f"x{name}", 5, origin=origin, schedule_id=None, token=f"call-0{name}", **changed)
            for name, origin, changed in [
                *((name, "adhoc", fields) for name in names),
                *(
                    (f"/{name}", "follow_up", {"finished_at": second(ends.get(name, 9))})
                    for name in followers
                ),
            ]
        ]
        lines = [
            line(each.id, what, 6 + (each.origin == "follow_up") + 3 * each.id.endswith("third"))
            for each in made
            for what in ("start", "end")
        ]
        return Story(7, 30, [], [asked], made, lines=lines)

    FAILED: ClassVar[dict[str, Any]] = {
        "state": "failed", "failures": 3, "attempt": 3, "result_status": "FAILURE",
    }  # fmt: skip

    def test_what_follows_is_there_once(self) -> None:
        assert check(self.followed("link", "link")) == []
        assert check(self.followed("chord", "body")) == []
        assert check(self.followed("link", "error", **self.FAILED)) == []
        assert check(self.followed("chord", **self.FAILED)) == []

    def test_a_chain_goes_on_after_each_success(self) -> None:
        assert check(self.followed("chain", "second", "third")) == []
        assert check(self.followed("chain", **self.FAILED)) == []

    @pytest.mark.parametrize("followers", [[], ["second"], ["third"], ["second", "second"]])
    def test_a_chain_that_breaks_off_or_leaves_one_out_is_named(self, followers: list[str]) -> None:
        assert "follow-up" in laws(self.followed("chain", *followers))

    def test_a_chain_that_goes_on_before_an_end_is_early(self) -> None:
        story = self.followed("chain", "second", "third")
        story.rows[1].finished_at = second(11)
        assert laws(story) == ["early"]

    def test_a_body_without_one_of_its_parts_is_named(self) -> None:
        story = self.followed("chord", "body")
        story.rows[1].state, story.rows[1].failures = "failed", 3
        story.rows[1].result_status = "FAILURE"
        assert "follow-up" in laws(story)

    @pytest.mark.parametrize(
        ("then", "followers"),
        [("link", []), ("link", ["error"]), ("link", ["link", "link"]), ("chord", [])],
    )
    def test_what_does_not_follow_a_success_is_named(self, then: str, followers: list[str]) -> None:
        assert "follow-up" in laws(self.followed(then, *followers))

    @pytest.mark.parametrize(("then", "follower"), [("link", "link"), ("chord", "body")])
    def test_what_follows_a_failure_as_if_it_were_none_is_named(
        self, then: str, follower: str
    ) -> None:
        assert "follow-up" in laws(self.followed(then, follower, **self.FAILED))

    def test_what_begins_before_the_end_that_it_follows_is_early(self) -> None:
        story = self.followed("link", "link")
        story.rows[0].finished_at = second(8)
        assert laws(story) == ["early"]


def step(at: float, size: float) -> Step:
    moment = second(at).timestamp()
    return Step(moment, moment + 0.001, size)


def moved(story: Story, by: float) -> Story:
    """Move all lines of the jobs' diary by some seconds of the machine's clock."""
    story.lines = [replace(line, at=line.at + by) for line in story.lines]
    return story


class TestSteps:
    """Of the ledger's clock, by which rows are judged; lines are of the machine's clock."""

    def test_what_is_in_time_by_the_ledgers_clock_is_right(self) -> None:
        assert set(laws(moved(good(), -40))) == {"early"}
        ahead = moved(good(), -40)
        ahead.steps = [step(-60, 40)]
        assert check(ahead) == []
        behind = moved(good(), 40)
        behind.steps = [step(-60, -40)]
        assert check(behind) == []

    def test_a_start_that_is_early_by_the_ledgers_clock_alone_is_named(self) -> None:
        story = good()
        story.steps = [step(-60, -3)]
        assert laws(story) == ["early", "early", "early"]
        assert "started at 12:00:10.500000" in told(story)

    def test_a_start_before_its_time_just_after_a_step_back_is_named(self) -> None:
        story = good()
        story.steps = [step(9, -5)]  # it shows 5.5 when the first run starts, and has shown 9
        assert laws(story) == ["early", "early", "early"]

    def queued(self, **fields: Any) -> Story:
        """Due at 10, when the clock had shown 10.4 already; claimed after a step back to 5.4."""
        story = good(a=row("a", 10, started_at=second(5.5), **fields))
        story.steps = [step(10.4, -5), step(12, 5)]
        return story

    def test_what_was_due_before_a_step_back_may_start_after_it(self) -> None:
        assert check(self.queued(run_at=second(5.45))) == []

    def test_what_was_not_due_before_a_step_back_may_not(self) -> None:
        story = self.queued(run_at=second(5.45))
        story.steps = [step(9.9, -5), step(12, 5)]
        assert set(laws(story)) == {"early"}

    def test_a_claim_before_its_time_is_early_after_a_step_back_too(self) -> None:
        assert laws(self.queued()) == ["early"]

    @pytest.mark.parametrize(("later", "early"), [(0, False), (40, True)])
    def test_a_claim_may_be_of_before_a_step_back_if_the_start_is_soon_after_it(
        self, later: float, early: bool
    ) -> None:
        retry = {"attempt": 2, "result": "2", "errors": [LOST], "failures": 1}
        story = good(c=row("c", 30, run_at=second(31 + later * 0.75), **retry))
        story.lines = [each for each in story.lines if each.run != "c"]
        story.lines.append(line("c", "start", 30.1))
        story.lines += [line("c", what, 31.2 + later, 2) for what in ("start", "end")]
        story.steps = [step(31.1, -20)]
        assert laws(story) == (["early"] if early else [])

    def test_what_a_call_asked_for_counts_from_the_ledgers_clock(self) -> None:
        began = second(5).timestamp()
        asked = Asked("call-0", began + 3, "committed", began=began, answered=began + 0.1)
        due = {"due_at": second(48), "run_at": second(48), "finished_at": second(49)}
        called = row("x", 8, origin="adhoc", schedule_id=None, token="call-0", **due)
        lines = [line("x", "start", 8.1), line("x", "end", 8.2)]
        story = Story(7, 30, [], [asked], [called], lines=lines, steps=[step(0, 40)])
        assert check(story) == []
        called.due_at = called.run_at = second(46)
        story.lines[0] = line("x", "start", 7.5)
        assert laws(story) == ["early"]

    def test_what_a_step_forward_leaves_out_is_for_catch_up(self) -> None:
        story = good(a=row("a", 10, coalesced=1, created_at=second(26)), c=row("c", 30))
        story.rows.pop(1)
        story.lines = [line("a", "start", 9.5), line("a", "end", 9.6)]
        story.lines += [line("c", "start", 12.5), line("c", "end", 12.6)]
        story.steps = [step(9, 18)]
        assert check(story) == []
        story.rows[0].coalesced = 0
        assert laws(story) == ["missing"]

    def test_what_a_step_back_lets_fire_twice_is_doubled(self) -> None:
        story = good(d=row("d", 20, created_at=second(20.02)))
        story.steps = [step(25, -8)]
        assert "doubled" in laws(story)

    def edited(self, seconds: int = 10) -> Story:
        """Edited at 16 after a step back from 25; the old rule had fired at 20 by then."""
        story = good()
        (phase,) = story.schedules[0].phases
        rule = Every(seconds, second(-2), with_anchor=False)
        story.schedules[0].phases = [
            replace(phase, until=second(16)), Phase(second(16), second(35), rule),
        ]  # fmt: skip
        story.rows[2] = row("c", 28)
        story.lines = [
            *story.lines[:4], line("c", "start", 38), line("c", "end", 38.5)
        ]  # fmt: skip
        story.steps = [step(25, -10)]
        return story

    def test_within_what_is_shown_twice_the_rules_before_and_after_an_edit_hold(self) -> None:
        assert check(self.edited()) == []

    def test_a_row_may_count_what_was_due_before_a_step_back_over_an_edit(self) -> None:
        story = self.edited()
        story.rows.pop(1)
        story.rows[0].coalesced, story.rows[0].created_at = 1, second(20.5)
        story.lines = [
            replace(each, at=each.at + 10) for each in story.lines if each.run == "a"
        ] + [each for each in story.lines if each.run == "c"]
        assert check(story) == []

    def test_an_instant_of_both_rules_may_count_those_of_the_rule_before_the_edit(self) -> None:
        story = self.edited(5)
        before = replace(
            story.schedules[0].phases[0], since=second(15), rule=Every(2, NOON, with_anchor=False)
        )
        story.schedules[0].phases[0] = before
        story.rows = [
            row("a", 16), row("b", 18, coalesced=3, created_at=second(24.5)), row("c", 28),
            row("d", 33),
        ]  # fmt: skip
        times = {"a": 16.1, "b": 24.6, "c": 38.1, "d": 43.1}
        story.lines = [
            line(name, what, at + (what == "end") * 0.1)
            for name, at in times.items() for what in ("start", "end")
        ]  # fmt: skip
        assert check(story) == []

    @pytest.mark.parametrize(("off", "told"), [("2026-11-19", []), ("", ["unexplained row"])])
    def test_what_a_day_off_had_moved_there_is_right_after_the_schedule_ended(
        self, off: str, told: list[str]
    ) -> None:
        story = good()
        rule = Cron("0", "12", "thu", "UTC")
        moves = Off("UTC", [off], "next") if off else None
        story.schedules[0].phases = [Phase(second(-60), second(-3), rule, moves)]
        story.rows = [row("b", 0)]
        story.lines = [line("b", "start", 0.5), line("b", "end", 0.9)]
        story.steps = [step(25, -30)]
        assert laws(story) == told

    def test_after_it_the_new_rule_holds_alone(self) -> None:
        story = self.edited()
        story.rows.pop()
        story.lines = story.lines[:4]
        assert laws(story) == ["missing"]
        assert "unexplained row" in laws(self.edited(9))

    def test_within_it_a_row_of_neither_rule_and_a_second_one_are_named(self) -> None:
        story = self.edited()
        story.rows.append(row("d", 21))
        story.lines += [line("d", what, 32) for what in ("start", "end")]
        assert "unexplained row" in laws(story)
        story.rows[-1] = row("d", 20)
        assert laws(story) == ["doubled"]

    def test_without_an_edit_the_rule_holds_in_what_is_shown_twice(self) -> None:
        story = good()
        story.rows.pop(1)
        story.lines = story.lines[:2] + [replace(each, at=each.at + 8) for each in story.lines[4:]]
        story.steps = [step(25, -8)]
        assert laws(story) == ["missing"]

    def overlapping(self, start: float) -> Story:
        """The first ends at 25 by the ledger's clock, just before it is stepped back by ten."""
        story = good(a=row("a", 10, finished_at=second(25)))
        story.schedules[0].overlap = "queue"
        story.lines = [
            line("a", "start", 10.5), line("a", "end", 24.9),
            line("b", "start", start), line("b", "end", start + 0.5),
            line("c", "start", 45), line("c", "end", 45.5),
        ]  # fmt: skip
        story.rows[1].finished_at = second(31)
        story.steps = [step(25.5, -10)]
        return story

    def test_one_that_waited_for_one_of_before_a_step_back_is_right(self) -> None:
        assert check(self.overlapping(32)) == []

    def test_two_at_a_time_are_named_whatever_a_step_makes_of_their_times(self) -> None:
        assert laws(self.overlapping(24.95)) == ["overlap"]

    def test_two_attempts_at_a_time_are_named_by_the_machines_clock(self) -> None:
        lost = LOST | {"ended_at": second(70).isoformat()}
        story = good(a=row("a", 10, attempt=2, result="2", errors=[lost], failures=1,
                           finished_at=second(71)))  # fmt: skip
        story.lines += [line("a", "start", 10.1), line("a", "end", 10.7)]
        story.steps = [step(10.3, 60), step(10.4, -60), step(10.45, 60)]
        assert "twice" in laws(story)

    @pytest.mark.parametrize(("size", "told"), [(31, False), (5, True)])
    def test_the_seconds_of_a_step_are_not_waited_for(self, size: float, told: bool) -> None:
        late = row("a", 10, created_at=second(10), started_at=second(45), priority=3,
                   deadline=second(12), late_by=33)  # fmt: skip
        story = moved(good(a=late), 40)
        story.steps = [step(11, size)]
        assert laws(story) == (["deadline"] if told else [])


def test_a_story_is_the_same_after_it_was_kept(tmp_path: Path) -> None:
    story = good(b=row("b", 20, errors=[LOST]))
    story.lines = []
    story.schedules[0].phases.append(Phase(second(35), second(36), None, TODAY))
    rule = Every(10, NOON, with_anchor=False)
    story.fills = [Fill("f", 1, "every-0", rule, TODAY, NOON, NOON, 1, True, NOON)]
    story.steps = [Step(1.0, 1.1, -30.0)]
    story.cancels, story.replays, story.anew = [Cancel("b")], [Replay("b")], [Anew("worker0", 1.0)]
    stories.save(story, tmp_path)
    (tmp_path / "evidence").mkdir()
    assert stories.load(tmp_path) == story


def test_the_report_counts_and_names() -> None:
    story = good(b=row("b", 20, result="2"))
    story.faults = [Done("kill_beat", "0", 0, 0, "beat0"), Done("kill_beat", "0", 0, 0, "")]
    text = report(story, check(story))
    assert "faults: 1 (and 1 with nothing to do it to)" in text
    assert "every      succeeded       3" in text
    assert "breaches: 1\n  fence: run b" in text
