import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from django_celery_beat.models import PeriodicTask

from scheduling.history import backfill_pace
from scheduling.management.command import user_name
from scheduling.models import Backfill, Origin, Run, State
from tests.scheduling.commands import Answer, called, refusal
from tests.scheduling.ledger import crontab, interval, run, schedule, set_plan

pytestmark = pytest.mark.django_db


@pytest.fixture
def nightly() -> PeriodicTask:
    """A schedule that was due at 02:30 on every day of October 2026."""
    row = schedule(crontab=crontab("30", "2"))
    set_plan(row, datetime(2099, 1, 1, 2, 30, tzinfo=UTC))
    return row


def backfill(*words: str, since: str = "2026-10-01", until: str = "2026-10-10") -> Answer:
    return called("schedule", "backfill", "nightly", "--from", since, "--to", until, *words)


def started(*words: str) -> Backfill:
    assert backfill(*words).code == 0
    return Backfill.objects.latest("pk")


@pytest.mark.usefixtures("nightly")
class TestDryRun:
    def test_it_says_how_many_and_which_and_writes_nothing(self) -> None:
        answer = backfill("--dry-run")
        assert answer.lines[0] == "'nightly' has 9 occurrences to run in this range"
        shown = [line.split(" UTC")[0] for line in answer.lines[1:-1]]
        assert shown == [
            "  2026-10-01 02:30:00",
            "  2026-10-02 02:30:00",
            "  2026-10-03 02:30:00",
            "  ... 3 more ...",
            "  2026-10-07 02:30:00",
            "  2026-10-08 02:30:00",
            "  2026-10-09 02:30:00",
        ]
        assert answer.lines[-1].startswith("Nothing was written")
        assert not Run.objects.exists()

    def test_it_says_where_an_interval_begins(self) -> None:
        PeriodicTask.objects.all().delete()
        row = schedule(interval=interval(1, "days"))
        set_plan(row, datetime(2099, 1, 1, tzinfo=UTC), anchor_at=datetime(2026, 10, 8, tzinfo=UTC))
        out = backfill("--dry-run").out
        assert "has 2 occurrences to run" in out
        assert "none before 2026-10-08 00:00:00 UTC" in out
        young = backfill(until="2026-10-05")
        assert "its interval counts from 2026-10-08T00:00:00Z" in young.err

    def test_it_says_what_is_left_out_and_why(self, nightly: PeriodicTask) -> None:
        due = datetime(2026, 10, 5, 2, 30, tzinfo=UTC)
        run(State.SUCCEEDED, schedule_id=nightly.pk, origin=Origin.SCHEDULE, due_at=due)
        set_plan(nightly, datetime(2026, 10, 8, 2, 30, tzinfo=UTC))
        out = backfill("--dry-run").out
        assert "has 6 occurrences to run" in out
        assert "left out: 1 whose run has succeeded" in out
        assert "left to beat: 2 that are due" in out
        assert "has 7 occurrences to run" in backfill("--dry-run", "--again").out

    def test_its_json_can_be_read_by_scripts(self) -> None:
        assert json.loads(backfill("--dry-run", "--json").out) == {
            "id": None,
            "schedule": "nightly",
            "from": "2026-10-01T00:00:00Z",
            "to": "2026-10-10T00:00:00Z",
            "runs": 9,
            "first": "2026-10-01T02:30:00Z",
            "last": "2026-10-09T02:30:00Z",
            "left_out": 0,
            "left_to_beat": 0,
        }


@pytest.mark.usefixtures("nightly")
class TestStarting:
    def test_it_says_its_id_and_its_pace(self) -> None:
        answer = backfill("--concurrency", "2")
        made = Backfill.objects.get()
        assert answer.lines[-1] == f"started backfill {made.pk}: 2 at a time"
        assert (made.run_count, made.concurrency, made.created_by) == (9, 2, user_name())
        assert json.loads(backfill("--again", "--json").out)["id"] != str(made.pk)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["nigtly", "--from", "2026-10-01", "--to", "2026-10-02"], "did you mean"),
            (["nightly", "--from", "2026-10-02", "--to", "2026-10-01"], "before it begins"),
            (["nightly", "--from", "2026-10-02", "--to", "2098-10-01"], "is in the future"),
            (["nightly", "--from", "2026-10-02", "--to", "9999-10-01"], "is out of range"),
            (["nightly", "--from", "2026-10-02T03", "--to", "2026-10-02T04"], "no occurrence"),
            (["nightly", "--to", "2026-10-01"], "--from"),
            (["nightly", "--from", "then", "--to", "2026-10-01"], "is not an ISO 8601 time"),
            (
                ["nightly", "--from", "2026-10-01", "--to", "2026-10-02", "--concurrency", "0"],
                "is not a whole number",
            ),
            (
                ["nightly", "--from", "2026-10-01", "--to", "2026-10-02", "--concurrency", "1001"],
                "is not from 1 to 1000",
            ),
        ],
    )
    def test_bad_input_is_one_clear_line_and_nothing_is_changed(
        self, words: list[str], message: str
    ) -> None:
        assert message in refusal("schedule", "backfill", *words)
        assert not Backfill.objects.exists()


@pytest.mark.usefixtures("nightly")
class TestLookingAtThem:
    def test_the_list_says_how_far_each_is(self) -> None:
        assert "schedule backfill NAME" in called("backfill", "list").out
        made = started()
        backfill_pace.release()
        _, line, _ = called("backfill", "list").lines
        assert line.split()[:2] == [str(made.pk), "nightly"]
        assert line.endswith("  9     9     going on")
        assert len(line) <= 100

    def test_show_has_its_json(self) -> None:
        made = started()
        shown: dict[str, Any] = json.loads(called("backfill", "show", str(made.pk), "--json").out)
        assert json.loads(called("backfill", "list", "--json").out) == [shown]
        assert (shown["schedule"], shown["runs"], shown["states"]) == ("nightly", 9, {"held": 9})
        out = called("backfill", "show", str(made.pk)).out
        assert "state      going on" in out
        assert "its runs   9 held" in out

    def test_one_that_is_not_there_is_one_clear_line(self) -> None:
        assert "does not exist" in refusal("backfill", "show", str(UUID(int=1)))
        assert "is not a run's id" in refusal("backfill", "show", "soon")


@pytest.mark.usefixtures("nightly")
class TestCancelling:
    def test_all_that_waits_of_it_is_cancelled(self) -> None:
        made = started()
        answer = called("backfill", "cancel", str(made.pk))
        assert answer.lines == [f"cancelled backfill {made.pk}: 9 cancelled"]
        assert f"cancelled  by {user_name()}" in called("backfill", "show", str(made.pk)).out
        assert "has ended already" in refusal("backfill", "cancel", str(made.pk))

    def test_what_runs_is_pointed_out(self) -> None:
        made = started()
        first = Run.objects.order_by("due_at")[0]
        Run.objects.filter(pk=first.pk).update(state=State.RUNNING, worker="w1")
        answer = called("backfill", "cancel", str(made.pk))
        assert "1 running" in answer.out
        assert "1 of its runs are running" in answer.err

    def test_removing_the_schedule_says_that_its_backfill_goes_on(self) -> None:
        made = started()
        answer = called("schedule", "remove", "nightly")
        assert f"`backfill cancel {made.pk}` ends it" in answer.err
        assert "9 cancelled" in called("backfill", "cancel", str(made.pk)).out
