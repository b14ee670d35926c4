import json
import re
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from django.test import override_settings
from django.utils import timezone
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, PeriodicTask

from scheduling import schedules
from scheduling.management.command import user_name
from scheduling.models import Calendar, ManagedBy, Origin, Plan, Policy, Run
from scheduling.schedules import planning
from tests.scheduling.commands import called, refusal
from tests.scheduling.ledger import YEAR

SWEEP = "notifications.tasks.sweep"
PRUNE = "scheduling.tasks.prune"

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _no_schedules_yet(db: None) -> None:
    PeriodicTask.objects.all().delete()


def added(*words: str, name: str = "nightly") -> PeriodicTask:
    answer = called("schedule", "add", name, SWEEP, *(words or ("--cron", "0 6 * * *")))
    assert answer.code == 0, answer.err
    return PeriodicTask.objects.get(name=name)


def listed() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(called("schedule", "list", "--json").out)
    return found


class TestAdd:
    def test_it_says_when_it_comes_first(self) -> None:
        answer = called("schedule", "add", "nightly", SWEEP, "--every", "5m")
        assert answer.out.startswith("added 'nightly': every 5 minutes, next ")
        assert re.search(r"\((in 5m|in 5m 1s|in 4m 59s)\)\n$", answer.out)

    @override_settings(TIME_ZONE="Europe/Berlin")
    def test_cron_is_read_in_the_project_s_zone(self) -> None:
        assert str(added().crontab.timezone) == "Europe/Berlin"

    def test_cron_is_read_in_the_zone_asked_for(self) -> None:
        schedule = added("--cron", "0 9 * * 1-5", "--timezone", "America/New_York")
        assert str(schedule.crontab.timezone) == "America/New_York"

    def test_at_and_in_make_one_offs(self) -> None:
        at = added("--at", f"{YEAR}-01-01T06:00+01:00", name="at")
        assert at.one_off
        assert at.clocked.clocked_time == datetime(YEAR, 1, 1, 5, tzinfo=UTC)
        later = added("--in", "2h", name="in")
        assert later.one_off
        away = later.clocked.clocked_time - datetime.now(UTC)
        assert timedelta(minutes=119) < away <= timedelta(minutes=121)

    @override_settings(TIME_ZONE="Europe/Berlin")
    def test_it_says_how_a_time_that_does_not_exist_was_read(self) -> None:
        day = next(day for day in range(31, 24, -1) if date(YEAR, 3, day).weekday() == 6)
        answer = called("schedule", "add", "spring", SWEEP, "--at", f"{YEAR}-03-{day}T02:30")
        assert f"{YEAR}-03-{day} 02:30:00 does not exist in Europe/Berlin" in answer.err
        clocked = PeriodicTask.objects.get(name="spring").clocked
        assert clocked.clocked_time == datetime(YEAR, 3, day, 1, tzinfo=UTC)

    def test_it_takes_every_policy_and_option(self) -> None:
        Calendar.objects.create(name="office")
        schedule = added(
            *("--every", "5m", "--start", f"{YEAR}-01-01", "--expires", "2087-01-01T12:00Z"),
            *("--kwargs", '{"on": "2026-11-20"}'),
            *("--catch-up", "all", "--catch-up-window", "1d", "--overlap", "queue"),
            *("--spread", "30s", "--max-attempts", "5", "--deadline-after", "1h"),
            *("--calendar", "office", "--excluded-day", "next", "--pause-after-failures", "3"),
            *("--owner", "ann@example.org"),
            *("--priority", "low", "--queue", "mail", "--description", "why"),
        )
        assert schedule.kwargs == '{"on": "2026-11-20"}'
        assert (schedule.priority, schedule.queue, schedule.description) == (9, "mail", "why")
        assert schedule.start_time == datetime(YEAR, 1, 1, tzinfo=UTC)
        assert schedule.expires == datetime(2087, 1, 1, 12, tzinfo=UTC)
        policy = Policy.objects.get(schedule=schedule)
        assert (policy.catch_up, policy.catch_up_window) == ("all", timedelta(days=1))
        assert (policy.overlap, policy.spread) == ("queue", timedelta(seconds=30))
        assert (policy.max_attempts, policy.deadline_after) == (5, timedelta(hours=1))
        assert policy.calendar is not None
        assert (policy.calendar.name, policy.excluded_day) == ("office", "next")
        assert (policy.pause_after_failures, policy.owner) == (3, "ann@example.org")

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["x", "notifications.tasks.swep", "--every", "5m"], "did you mean"),
            (["x", SWEEP, "--every", "5m", "--args", "[1, 2, 3]"], "arguments do not fit"),
            (["x", SWEEP, "--every", "5m", "--args", "[1"], "is not JSON"),
            (["x", SWEEP, "--every", "5m", "--args", "[1e400]"], "1e400 is too large"),
            (["x", SWEEP, "--every", "5x"], "'5x' is not a duration"),
            (["x", SWEEP, "--every", "-5m"], "'-5m' is not a duration"),
            (["x", SWEEP, "--every", "3000000d"], "is out of range"),
            (["x", SWEEP, "--every", "5m", "--max-attempts", "-1"], "is not a whole number"),
            (["x", SWEEP, "--every", "5m", "--max-attempts", "0"], "is not a whole number"),
            (["x", SWEEP, "--every", "5m", "--timezone", "UTC"], "goes with --cron only"),
            (["x", SWEEP, "--in", "5m", "--start", "2086-01-01"], "--cron and --every only"),
            (["x", SWEEP, "--in", "5m", "--expires", "1h"], "--expires goes with --cron and"),
            (["x", SWEEP, "--every", "5m", "--expires", "2020-01-01"], "does not fire"),
            (["x", SWEEP, "--every", "5m", "--expires", "soon"], "neither a duration"),
            (["x", SWEEP, "--every", "5m", "--cron", "* * * * *"], "not allowed with argument"),
            (["x", SWEEP], "one of the arguments --cron --every --at --in is required"),
            (["x", SWEEP, "--cron", "61 * * * *"], "minute '61'"),
            (["x", SWEEP, "--cron", "0 0 31 2 *"], "does not fire"),
            (["x", SWEEP, "--cron", "0 0 * * *", "--timezone", "Mars/Base"], "not a time zone"),
            (["x", SWEEP, "--cron", ""], "five"),
            (["x", SWEEP, "--at", "2020-01-01"], "is in the past"),
            (["x", SWEEP, "--at", "tomorrow"], "is not an ISO 8601 time"),
            (["x", SWEEP, "--every", "5m", "--overlap", "both"], "invalid choice: 'both'"),
            (["x", SWEEP, "--every", "5m", "--priority", "3"], "invalid choice: '3'"),
            (["", SWEEP, "--every", "5m"], "cannot be blank"),
            ([" ", SWEEP, "--every", "5m"], "is blank"),
            (["x", SWEEP, "--every", "5m", "--calendar", "ofice"], "did you mean 'office'"),
            (["x", SWEEP, "--every", "5m", "--excluded-day", "then"], "invalid choice: 'then'"),
            (["x", SWEEP, "--every", "5m", "--pause-after-failures", "0"], "whole number"),
            (["x", SWEEP, "--every", "5m", "--spread", "0s"], "is out of range"),
        ],
    )
    def test_bad_input_is_one_clear_line_and_nothing_is_changed(
        self, words: list[str], message: str
    ) -> None:
        Calendar.objects.create(name="office")
        assert message in refusal("schedule", "add", *words)
        assert not PeriodicTask.objects.exists()

    def test_a_name_that_is_taken_is_refused(self) -> None:
        added()
        taken = refusal("schedule", "add", "nightly", SWEEP, "--every", "5m")
        assert taken.endswith("already: choose another name, or remove that one first.")
        Policy.objects.create(schedule_id=PeriodicTask.objects.get().pk, managed_by=ManagedBy.CODE)
        taken = refusal("schedule", "add", "nightly", SWEEP, "--every", "5m")
        assert taken.endswith("already in CELERY_BEAT_SCHEDULE: choose another name.")


class TestEdit:
    def test_it_says_what_it_changes_and_changes_it(self) -> None:
        added("--cron", "0 6 * * *", "--timezone", "Europe/Berlin")
        answer = called("schedule", "edit", "nightly", "--cron", "0 7 * * *", "--overlap", "skip")
        rule, overlap, counts, moved, done = answer.lines
        assert rule == "rule: 0 6 * * * Europe/Berlin -> 0 7 * * * Europe/Berlin"
        assert overlap == "overlap: allow -> skip"
        assert counts == "over the next 30 days: adds 30, removes 30, keeps 0"
        assert moved.startswith("first that moves: 20")
        assert done.startswith("edited 'nightly', next 20")
        (schedule,) = listed()
        assert (schedule["rule"], schedule["timezone"]) == ("0 7 * * *", "Europe/Berlin")
        assert schedule["policy"]["overlap"] == "skip"

    def test_a_dry_run_changes_nothing(self) -> None:
        added()
        before = listed()
        answer = called("schedule", "edit", "nightly", "--every", "5m", "--dry-run")
        assert answer.lines[0] == "rule: 0 6 * * * UTC -> every 5 minutes"
        assert answer.lines[-1].startswith("Nothing was written")
        assert listed() == before

    def test_the_task_and_the_end_can_be_changed_and_the_end_taken_back(self) -> None:
        added("--every", "5m")
        edit = ("schedule", "edit", "nightly")
        dry = called(*edit, "--task", PRUNE, "--expires", "2086-01-01T12:00Z", "--dry-run")
        assert dry.lines[:2] == [
            f"task: {SWEEP} -> {PRUNE}",
            "expires: none -> 2086-01-01T12:00:00Z",
        ]
        assert PeriodicTask.objects.get().task == SWEEP
        called(*edit, "--task", PRUNE, "--expires", "2h")
        row = PeriodicTask.objects.get()
        assert row.task == PRUNE
        assert timedelta(hours=1) < row.expires - timezone.now() <= timedelta(hours=2)
        called(*edit, "--expires", "none")
        assert PeriodicTask.objects.get().expires is None

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--task", "notifications.tasks.swep"], "did you mean"),
            (["--task", "tests.jobs.tasks.add"], "arguments do not fit"),
            (["--task", ""], "task"),
            (["--expires", "2020-01-01"], "does not fire within ten years"),
            (["--start", f"{YEAR}-01-02", "--expires", f"{YEAR}-01-01"], "does not fire"),
            (["--cron", "0 0 31 2 *"], "does not fire within ten years"),
        ],
    )
    def test_what_could_never_run_is_refused(self, words: list[str], message: str) -> None:
        added("--every", "5m")
        before = listed()
        assert message in refusal("schedule", "edit", "nightly", *words)
        assert message in refusal("schedule", "edit", "nightly", *words, "--dry-run")
        assert listed() == before

    def test_an_end_beside_a_time_after_which_runs_are_useless_is_refused(self) -> None:
        added()
        PeriodicTask.objects.update(expire_seconds=60)
        assert "useless 60 s after" in refusal("schedule", "edit", "nightly", "--expires", "9w")

    def test_a_zone_alone_moves_the_rule_there(self) -> None:
        added()
        called("schedule", "edit", "nightly", "--timezone", "Asia/Tokyo")
        (schedule,) = listed()
        assert (schedule["rule"], schedule["timezone"]) == ("0 6 * * *", "Asia/Tokyo")

    def test_its_json_has_pairs_of_what_was_and_what_is_then(self) -> None:
        added("--every", "1h", "--spread", "30s")
        words = ("--spread", "90s", "--args", "[]", "--description", "why", "--dry-run", "--json")
        assert json.loads(called("schedule", "edit", "nightly", *words).out) == {
            "changes": {"description": ["", "why"], "spread": [30, 90]},
            "occurrences": None,
        }

    def test_it_clears_what_is_none(self) -> None:
        Calendar.objects.create(name="office")
        added(
            *("--every", "1h", "--catch-up-window", "1d", "--spread", "30s", "--owner", "a@b.org"),
            *("--deadline-after", "1h", "--calendar", "office", "--pause-after-failures", "3"),
            *("--max-attempts", "5", "--queue", "mail", "--priority", "low"),
        )
        options = (
            "catch-up-window", "spread", "owner", "deadline-after", "calendar",
            "pause-after-failures", "max-attempts", "queue", "priority",
        )  # fmt: skip
        words = [word for option in options for word in (f"--{option}", "none")]
        answer = called("schedule", "edit", "nightly", *words)
        assert answer.code == 0, answer.err
        assert len(answer.lines) == len(options) + 2
        assert "no occurrence moves" in answer.lines[-2]  # the calendar has no day off
        (schedule,) = listed()
        left = {name: schedule["policy"][name.replace("-", "_")] for name in options[:7]}
        assert set(left.values()) == {None, 0, ""}
        assert PeriodicTask.objects.get(name="nightly").queue is None

    def test_it_says_that_none_of_them_runs_while_it_is_paused(self) -> None:
        added()
        called("schedule", "pause", "nightly")
        answer = called("schedule", "edit", "nightly", "--cron", "0 7 * * *", "--dry-run")
        assert "adds 30, removes 30" in answer.out
        assert f"paused by {user_name()} until it is resumed" in answer.err

    def test_what_is_so_already_is_said(self) -> None:
        added()
        answer = called("schedule", "edit", "nightly", "--cron", "0 6 * * *")
        assert answer.lines == ["'nightly' already has these values: nothing to change."]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["nigtly", "--every", "5m"], "did you mean 'nightly'"),
            (["nightly", "--cron", "0 0 31 2 *"], "does not fire"),
            (["nightly", "--cron", "61 * * * *"], "minute '61'"),
            (["nightly", "--timezone", "Mars/Base"], "not a time zone"),
            (["nightly", "--every", "5m", "--timezone", "UTC"], "goes with --cron"),
            (["nightly", "--at", "2020-01-01"], "is in the past"),
            (["nightly", "--args", "[1, 2, 3]"], "arguments do not fit"),
            (["nightly", "--args", "[1"], "is not JSON"),
            (["nightly", "--calendar", "office"], "calendar 'office' does not exist"),
            (["nightly", "--spread", "-1s"], "is not a duration"),
            (["nightly", "--max-attempts", "0"], "is not a whole number"),
            (["nightly", "--overlap", "none"], "invalid choice: 'none'"),
            (["nightly", "--owner", "o@b.org," * 99], "owner: .*at most 500"),
        ],
    )
    def test_bad_input_is_one_clear_line_and_nothing_is_changed(
        self, words: list[str], message: str
    ) -> None:
        added()
        before = listed()
        assert re.search(message, refusal("schedule", "edit", *words))
        assert listed() == before

    def test_the_code_s_schedules_are_left_to_the_code(self) -> None:
        Policy.objects.create(schedule=added(), managed_by=ManagedBy.CODE)
        assert "managed by code" in refusal("schedule", "edit", "nightly", "--every", "5m")


class TestShow:
    def test_it_has_every_policy_and_where_it_stands(self) -> None:
        added("--every", "1h", "--spread", "90s", "--kwargs", '{"on": "2026-11-20"}')
        called("schedule", "pause", "nightly", "--reason", "deploy freeze")
        out = called("schedule", "show", "nightly").out
        assert "Schedule 'nightly', managed by users" in out
        for line in (
            f"task                 {SWEEP}",
            'arguments            {"on": "2026-11-20"}',
            "rule                 every hour",
            "next                 paused",
            f"will not run         paused by {user_name()} until it is resumed: deploy freeze",
            "spread               1m 30s",
            "pause_after_failures none",
            "catch_up             latest (one run for all missed occurrences)",
        ):
            assert f"  {line}\n" in out

    def test_its_json_is_that_of_the_list(self) -> None:
        added()
        assert json.loads(called("schedule", "show", "nightly", "--json").out) == listed()[0]


class TestList:
    def test_an_empty_one_says_what_to_do_next(self) -> None:
        assert "manage.py schedule add" in called("schedule", "list").out
        assert listed() == []

    def test_its_json_is_the_contract_s(self) -> None:
        added("--cron", "0 6 * * *", "--timezone", "Europe/Berlin", "--spread", "90s")
        (schedule,) = listed()
        assert list(schedule) == [
            *("name", "task", "rule", "timezone", "enabled", "next_due_at", "last_due_at"),
            "policy",
        ]
        assert (schedule["rule"], schedule["timezone"]) == ("0 6 * * *", "Europe/Berlin")
        assert schedule["next_due_at"].endswith("Z")
        assert schedule["policy"] == {
            "catch_up": "latest",
            "catch_up_window": None,
            "overlap": "allow",
            "spread": 90,
            "max_attempts": None,
            "deadline_after": None,
            "calendar": None,
            "excluded_day": "skip",
            "pause_after_failures": None,
            "paused_at": None,
            "paused_until": None,
            "pause_reason": "",
            "paused_by": "",
            "owner": "",
            "managed_by": "user",
        }

    def test_it_shows_the_same_next_instant_before_and_after_beat_has_planned(self) -> None:
        added()
        before = listed()
        assert planning.plan_changed() == 1
        assert listed() == before

    def test_a_one_off_that_has_run_is_done(self) -> None:
        schedule = added("--at", f"{YEAR}-01-01T06:00", name="once")
        PeriodicTask.objects.update(enabled=False)
        Plan.objects.filter(schedule=schedule).update(last_due_at=datetime(2086, 1, 1, tzinfo=UTC))
        (_, line, _) = called("schedule", "list").lines
        assert line.split() == ["once", SWEEP, "once", "done", "2086-01-01", "00:00"]

    def test_it_fits_a_terminal(self, terminal: None) -> None:
        added(name="a-name-that-is-rather-long-for-a-table-of-a-hundred-columns")
        added("--at", f"{YEAR}-01-01T06:00", name="once")
        answer = called("schedule", "list")
        assert max(map(len, answer.lines)) <= 100
        assert answer.lines[0].split() == ["NAME", "TASK", "RULE", "NEXT", "LAST"]
        assert answer.lines[-1].startswith("Times are in UTC")

    @pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
    def test_instants_at_either_end_of_time_can_be_shown(self, zone: str) -> None:
        for name, at in (
            ("first", datetime(1, 1, 1, tzinfo=UTC)),
            ("last", datetime(9999, 12, 31, 23, tzinfo=UTC)),
        ):
            clocked = ClockedSchedule.objects.create(clocked_time=at)
            PeriodicTask.objects.create(name=name, task=SWEEP, clocked=clocked, one_off=True)
        Plan.objects.update(needs_plan=False, last_due_at=datetime(1, 1, 1, tzinfo=UTC))
        Plan.objects.filter(schedule__name="last").update(next_due_at=at)
        with override_settings(TIME_ZONE=zone):
            (_, first, last, _) = called("schedule", "list").lines
            assert re.search(r" 0*1-01-01 \d\d:\d\d$", first)
            assert re.search(r"9999-12-31 (18|23):00 ", last)
            assert called("schedule", "show", "last").code == 0

    def test_what_will_not_run_says_why(self) -> None:
        for name in ("broken", "disabled", "paused"):
            added("--cron", f"{len(name)} 6 * * *", name=name)
        CrontabSchedule.objects.filter(periodictask__name="broken").update(minute="sixty")
        PeriodicTask.objects.filter(name="disabled").update(enabled=False)
        called("schedule", "pause", "paused", "--reason", "deploy freeze")
        out = called("schedule", "list").out
        assert "  broken: " in out
        assert "'sixty'" in out
        assert " disabled " in out
        assert f"  paused by {user_name()} until it is resumed: deploy freeze" in out
        assert [schedule["next_due_at"] for schedule in listed()] == [None, None, None]


class TestNext:
    def test_it_counts_the_times_that_the_clocks_leave_out(self) -> None:
        added("--cron", "*/15 2,3 * * *", "--timezone", "Europe/Berlin")
        words = ("schedule", "next", "nightly", "-n", "1", "--from", "2027-03-27T12:00Z")
        assert "the clocks skip 2027-03-28 02:00 and 3 more: this is" in called(*words).out
        (occurrence,) = json.loads(called(*words, "--json").out)
        assert (occurrence["missing"], occurrence["missing_more"]) == ("2027-03-28T02:00:00", 3)

    def test_its_json_is_the_contract_s(self) -> None:
        added("--cron", "30 2 * * *", "--timezone", "Europe/Berlin")
        words = ("-n", "2", "--from", "2027-03-27T12:00Z", "--json")
        answer = called("schedule", "next", "nightly", *words)
        assert json.loads(answer.out) == [
            {
                "due_at": "2027-03-28T01:00:00Z",
                "run_at": "2027-03-28T01:00:00Z",
                "local": "2027-03-28T03:00:00+02:00",
                "dst": "shifted",
                "missing": "2027-03-28T02:30:00",
            },
            {
                "due_at": "2027-03-29T00:30:00Z",
                "run_at": "2027-03-29T00:30:00Z",
                "local": "2027-03-29T02:30:00+02:00",
                "dst": "",
            },
        ]

    def test_it_shows_ten_unless_told(self) -> None:
        added()
        assert len(called("schedule", "next", "nightly").lines) == 11
        assert len(called("schedule", "next", "nightly", "-n", "3").lines) == 4

    @pytest.mark.parametrize(
        ("rule", "start", "note"),
        [
            ("30 2 * * *", "2027-03-27T12:00Z", "the clocks skip 2027-03-28 02:30: this is"),
            (
                "*/30 2 * * *",
                "2027-03-27T12:00Z",
                "the clocks skip 2027-03-28 02:00 and 1 more: this is",
            ),
            ("*/30 2-3 * * *", "2027-03-28T00:45Z", "the clocks skip 2027-03-28 02:00"),
            ("30 * * * *", "2027-10-31T00:45Z", "second pass"),
        ],
    )
    def test_changes_of_the_clocks_are_explained(self, rule: str, start: str, note: str) -> None:
        added("--cron", rule, "--timezone", "Europe/Berlin")
        answer = called("schedule", "next", "nightly", "-n", "1", "--from", start)
        assert note in answer.out

    @pytest.mark.parametrize(
        ("spread", "starts"),
        [
            (timedelta(hours=1), r" 23:\d\d:\d\d"),
            (timedelta(days=1000), r" 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d"),
        ],
    )
    def test_where_there_is_a_spread_it_starts_on_the_same_clocks(
        self, spread: timedelta, starts: str
    ) -> None:
        schedule = added("--cron", "0 23 * * *", "--timezone", "Europe/Berlin")
        Policy.objects.create(schedule=schedule, spread=spread)
        answer = called("schedule", "next", "nightly", "-n", "1", "--from", "2027-07-01T12:00Z")
        assert re.search(rf"2027-07-01 23:00:00 CEST .*\S {starts}\n", answer.out)

    def test_a_paused_schedule_is_pointed_out_on_stderr(self) -> None:
        added()
        called("schedule", "pause", "nightly", "--until", "2086-01-01")
        answer = called("schedule", "next", "nightly", "--json", "-n", "1")
        assert "paused by" in answer.err
        assert len(json.loads(answer.out)) == 1

    def test_a_rule_that_has_ended_says_so(self) -> None:
        added("--at", f"{YEAR}-01-01")
        answer = called("schedule", "next", "nightly", "--from", "2087-01-01")
        assert "'nightly' has no occurrence after 2087-01-01" in answer.out

    def test_bad_input_is_one_clear_line(self) -> None:
        added()
        assert "did you mean 'nightly'" in refusal("schedule", "next", "nigtly")
        assert "'0' is not a whole number" in refusal("schedule", "next", "nightly", "-n", "0")
        assert "'-1' is not a whole number" in refusal("schedule", "next", "nightly", "-n", "-1")


class TestPauseAndResume:
    def test_pausing_again_replaces_the_end(self) -> None:
        added()
        answer = called("schedule", "pause", "nightly", "--until", "2h")
        assert answer.out.startswith("paused 'nightly' until 20")
        assert answer.out.endswith("(in 2h)\n")
        answer = called("schedule", "pause", "nightly")
        assert (answer.code, answer.out) == (0, "paused 'nightly' until it is resumed\n")
        assert "is already paused" in answer.err

    def test_resume_says_when_it_comes_next(self) -> None:
        added("--every", "1h")
        called("schedule", "pause", "nightly")
        answer = called("schedule", "resume", "nightly")
        assert answer.out.startswith("resumed 'nightly', next 20")

    def test_resuming_what_is_not_paused_is_a_note(self) -> None:
        added()
        answer = called("schedule", "resume", "nightly")
        assert (answer.code, answer.out) == (0, "")
        assert "is not paused" in answer.err

    @pytest.mark.parametrize("until", ["2020-01-01", "-2h", "soon"])
    def test_an_end_that_is_none_is_refused(self, until: str) -> None:
        schedule = added()
        refusal("schedule", "pause", "nightly", "--until", until)
        assert not Policy.objects.filter(schedule=schedule).exists()

    def test_the_code_s_schedules_can_be_paused(self) -> None:
        Policy.objects.create(schedule=added(), managed_by=ManagedBy.CODE)
        assert called("schedule", "pause", "nightly").code == 0
        assert called("schedule", "resume", "nightly").code == 0


class TestRemove:
    def test_it_says_what_becomes_of_the_runs(self) -> None:
        schedule = added()
        due = datetime(2026, 11, 20, 6, tzinfo=UTC)
        Run.objects.create(
            schedule_id=schedule.pk, task=SWEEP, origin=Origin.SCHEDULE, queue="celery",
            due_at=due, run_at=due,
        )  # fmt: skip
        answer = called("schedule", "remove", "nightly")
        assert answer.out == "removed 'nightly'; its runs stay in the ledger\n"
        assert "1 of its runs are unfinished and go on" in answer.err
        assert Run.objects.exists()
        assert not PeriodicTask.objects.exists()

    def test_a_schedule_of_code_stays(self) -> None:
        Policy.objects.create(schedule=added(), managed_by=ManagedBy.CODE)
        assert "change CELERY_BEAT_SCHEDULE" in refusal("schedule", "remove", "nightly")
        assert PeriodicTask.objects.exists()


class TestSync:
    def test_it_prints_what_changed(self) -> None:
        entry = {"task": SWEEP, "schedule": timedelta(hours=1)}
        with override_settings(CELERY_BEAT_SCHEDULE={"swept": entry}):
            assert "+ swept: every hour" in called("schedule", "sync").lines
            assert called("schedule", "sync").lines == [
                "The schedules already match CELERY_BEAT_SCHEDULE."
            ]

    def test_a_users_schedule_that_differs_stays_until_it_is_taken_over(self) -> None:
        schedules.add("swept", SWEEP, schedules.Every(timedelta(hours=1)), by="ann")
        entry = {"task": SWEEP, "schedule": timedelta(hours=2)}
        with override_settings(CELERY_BEAT_SCHEDULE={"swept": entry}):
            answer = called("schedule", "sync")
            assert answer.code == 0
            left, how = answer.err.splitlines()
            assert left == "! swept: rule: every hour -> every 2 hours"
            assert "`manage.py schedule sync --take-over NAME`" in how
            assert "scheduling.W004) A user's schedule differs" in called("check").err
            taken = "= swept: now belongs to code; rule: every hour -> every 2 hours"
            for words in (["--take-over", "swept"], ["--take-over-all"]):
                assert called("schedule", "sync", *words, "--dry-run").lines == [
                    taken, "Nothing was written: this was a dry run."
                ]  # fmt: skip
            assert called("schedule", "sync", "--take-over", "swept").lines == [taken]
            assert called("schedule", "sync").err == ""
            assert "scheduling.W004" not in called("check").err

    def test_a_name_that_code_has_not_is_refused(self) -> None:
        assert "code has no schedule 'swpt'" in refusal("schedule", "sync", "--take-over", "swpt")
