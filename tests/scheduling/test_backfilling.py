"""Backfills: runs for a range of the past, apart from what their schedule does meanwhile."""

from datetime import timedelta
from uuid import UUID

import pytest

from scheduling import clock, firing
from scheduling.finishing import Outcome, finish
from scheduling.models import Origin, Run, State
from scheduling.waiting import release_held
from tests.scheduling.ledger import LONG_AGO, run, runs_of, schedule, set_plan

ONE = UUID(int=1)
SUCCEEDED = Outcome(State.SUCCEEDED)


def of_backfill(state: State, schedule_id: int = 7) -> Run:
    return run(state, schedule_id=schedule_id, backfill_id=ONE, origin=Origin.BACKFILL)


def state_of(row: Run) -> str:
    return Run.objects.get(pk=row.pk).state


@pytest.mark.django_db
class TestBesideTheSchedule:
    @pytest.mark.parametrize(
        "policy", [{"overlap": "skip"}, {"overlap": "queue"}, {"catch_up": "all"}]
    )
    def test_its_unfinished_runs_hold_up_no_occurrence(self, policy: dict[str, str]) -> None:
        row = schedule(policy=policy)
        for state in (State.HELD, State.RUNNING):
            of_backfill(state, row.pk)
        set_plan(row, clock.now() - timedelta(milliseconds=5))
        firing.fire_due(LONG_AGO)
        fired = Run.objects.get(schedule_id=row.pk, origin=Origin.SCHEDULE)
        assert fired.state == State.SCHEDULED

    def test_a_replacing_occurrence_cancels_none_of_them(self) -> None:
        row = schedule(policy={"overlap": "replace"})
        for state in (State.HELD, State.SCHEDULED, State.RUNNING):
            of_backfill(state, row.pk)
        own = run(schedule_id=row.pk)
        set_plan(row, clock.now() - timedelta(milliseconds=5))
        firing.fire_due(LONG_AGO)
        assert state_of(own) == State.CANCELLED
        made = [one for one in runs_of(row) if one.backfill_id]
        assert {one.state for one in made} == {State.HELD, State.SCHEDULED, State.RUNNING}
        assert {one.cancel_requested_by for one in made} == {""}
        assert Run.objects.get(schedule_id=row.pk, origin=Origin.SCHEDULE).state == State.SCHEDULED

    def test_a_run_of_the_schedule_that_ends_releases_none_of_them(self) -> None:
        waiting, ending = of_backfill(State.HELD), run(State.RUNNING, schedule_id=7)
        finish(ending.pk, 1, SUCCEEDED)
        assert release_held() == 0
        assert state_of(waiting) == State.HELD

    def test_what_the_schedule_holds_does_not_wait_for_them(self) -> None:
        of_backfill(State.RUNNING)
        held = run(State.HELD, schedule_id=7)
        finish(run(State.RUNNING, schedule_id=7).pk, 1, SUCCEEDED)
        assert state_of(held) == State.SCHEDULED
        held = run(State.HELD, schedule_id=8)
        of_backfill(State.RUNNING, 8)
        assert release_held() == 1
        assert state_of(held) == State.SCHEDULED
