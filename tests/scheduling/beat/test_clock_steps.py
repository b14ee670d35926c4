"""Steps of the ledger's clock: a beat notices them, and corrects rows that they leave ahead."""

from datetime import timedelta

import pytest
from pytest_django import Settings

from scheduling import clock
from scheduling.beat import clock_steps
from scheduling.beat.clock_steps import ClockSteps
from scheduling.beat.lost_leases import SilenceWatch, recover_leases_ahead, recover_lost_leases
from scheduling.models import Run, State
from tests.scheduling.ledger import NOON, run
from tests.waiting import wait_for


@pytest.fixture(autouse=True)
def _lease(settings: Settings) -> None:
    settings.RUN_LEASE = timedelta(seconds=30)


def said(steps: ClockSteps, clock_at: float, *, asked: float, answered: float) -> float:
    return steps.step(NOON + timedelta(seconds=clock_at), asked, answered)


@pytest.mark.parametrize("seconds", [60, -60, 5, -5])
def test_a_step_is_noticed_once(seconds: float) -> None:
    steps = ClockSteps()
    assert said(steps, 0, asked=100, answered=100.01) == 0
    assert said(steps, 1, asked=101, answered=101.01) == 0
    step = said(steps, 2 + seconds, asked=102, answered=102.01)
    assert step == pytest.approx(seconds, abs=0.02)
    assert said(steps, 3 + seconds, asked=103, answered=103.01) == 0


def test_a_late_answer_is_no_step() -> None:
    steps = ClockSteps()
    said(steps, 0, asked=100, answered=100.01)
    for at, given in ((1, 1.0), (20, 28.0), (40, 40.01)):  # asked then, and given then
        assert said(steps, given, asked=100 + at, answered=100 + at + 9) == 0


def test_several_short_steps_in_a_row_are_one() -> None:
    steps = ClockSteps()
    found = [said(steps, n * 2.0, asked=100 + n, answered=100 + n + 0.01) for n in range(4)]
    assert sum(map(bool, found)) == 1


def test_a_clock_that_runs_a_little_fast_is_not_stepped() -> None:
    steps = ClockSteps()
    assert not any(
        said(steps, n * 1.0005, asked=100 + n, answered=100 + n + 0.001) for n in range(10_000)
    )


@pytest.mark.django_db
class TestLeases:
    @pytest.fixture(autouse=True)
    def _short(self, settings: Settings) -> None:
        settings.RUN_LEASE = timedelta(seconds=0.2)

    def silence(self) -> SilenceWatch:
        """Return the watch of a beat that has looked for long enough to judge."""
        silence = SilenceWatch()
        silence.said(clock.now())
        wait_for(silence.may_judge)
        return silence

    def test_after_a_step_they_are_judged_a_lease_later_and_count_no_failure(self) -> None:
        silence = self.silence()
        made = run(State.RUNNING, lease_expires_at=clock.now() + timedelta(seconds=50))
        assert silence.said(clock.now() + timedelta(seconds=60)) == pytest.approx(60, abs=0.1)
        Run.objects.update(lease_expires_at=clock.now())  # as if the clock had come by
        assert recover_lost_leases(silence) == 0
        silence.said(clock.now())
        assert recover_lost_leases(silence) == 0
        wait_for(lambda: not silence.said(clock.now()) and recover_lost_leases(silence))
        assert (Run.objects.get().pk, Run.objects.get().failures) == (made.pk, 0)

    def test_a_clock_that_is_stepped_between_look_and_judgement_ends_no_lease(self) -> None:
        silence = self.silence()
        silence.said(clock.now() - timedelta(milliseconds=1))
        run(State.RUNNING, lease_expires_at=clock.now())
        assert recover_lost_leases(silence) == 0

    def test_one_from_before_a_step_back_is_over_when_nobody_has_renewed_it_for_a_lease(
        self,
    ) -> None:
        silence = self.silence()
        lost = run(State.RUNNING, lease_expires_at=clock.now() + timedelta(seconds=60.1))
        alive = run(State.RUNNING, lease_expires_at=clock.now() + timedelta(seconds=60.1))
        silence.said(clock.now() + timedelta(seconds=60))
        silence.said(clock.now())
        wait_for(silence.looks_ahead)
        assert recover_leases_ahead(silence) == 0
        Run.objects.filter(pk=alive.pk).update(lease_expires_at=clock.now() + timedelta(seconds=9))
        wait_for(lambda: silence.looks_ahead() and recover_leases_ahead(silence))
        assert [run.pk for run in Run.objects.filter(attempt=2)] == [lost.pk]

    def test_one_of_a_worker_with_longer_leases_is_left_alone(self) -> None:
        silence = self.silence()
        run(State.RUNNING, lease_expires_at=clock.now() + timedelta(seconds=3))
        assert recover_leases_ahead(silence) == 0
        wait_for(silence.looks_ahead)
        assert recover_leases_ahead(silence) == 0, "it is renewed each second only"


@pytest.mark.django_db
def test_queued_runs_that_a_step_back_left_ahead_of_the_clock_may_start() -> None:
    ahead = clock.now() + timedelta(seconds=60)
    made = run(State.QUEUED, queued_at=ahead, run_at=ahead - timedelta(seconds=1))
    later = run(State.SCHEDULED, run_at=ahead)
    other = run(State.QUEUED)
    assert clock_steps.settle_queued() == 1
    made.refresh_from_db()
    assert made.queued_at is not None
    assert made.run_at <= made.queued_at <= clock.now()
    assert Run.objects.get(pk=later.pk).run_at == ahead
    assert Run.objects.get(pk=other.pk).queued_at == other.queued_at
