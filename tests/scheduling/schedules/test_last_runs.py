"""Last runs that a beat fired and could not copy any more; the others are tested with `fire`."""

from datetime import timedelta

import pytest
from django_celery_beat.models import PeriodicTask

from scheduling import clock
from scheduling.beat import firing
from scheduling.schedules import last_runs, planning
from scheduling.tasks import prune
from tests.scheduling.ledger import (
    LONG_AGO,
    far_off,
    in_thread,
    is_blocked,
    plan_of,
    schedule,
    second_connection,
    set_plan,
)
from tests.waiting import wait_for


def fired(name: str = "nightly", *, one_off: bool = False) -> PeriodicTask:
    """Return a schedule whose beat was killed as soon as it had fired."""
    row = schedule(name, one_off=one_off)
    set_plan(row, clock.now() - timedelta(seconds=1))
    firing.fire_due(LONG_AGO)
    return row


@pytest.mark.django_db
class TestForgotten:
    def test_the_daily_job_copies_them(self) -> None:
        row, one_off = fired(), fired("once", one_off=True)
        prune()
        for one in (row, one_off):
            one.refresh_from_db()
            assert (one.last_run_at, one.total_run_count) == (plan_of(one).last_due_at, 1)
        assert (row.enabled, one_off.enabled) == (True, False)

    def test_they_are_found_batch_by_batch_and_once(self) -> None:
        for n in range(5):
            fired(f"s{n}")
        schedule("never fired")
        assert last_runs.copy_forgotten(limit=2) == 5
        assert last_runs.copy_forgotten(limit=2) == 0

    def test_a_one_off_that_a_user_has_armed_again_stays_armed(self) -> None:
        row = fired(one_off=True)
        last_runs.copy_forgotten()
        PeriodicTask.objects.filter(pk=row.pk).update(enabled=True)
        planning.plan_changed()
        last_runs.copy_forgotten()
        row.refresh_from_db()
        assert row.enabled


@pytest.mark.django_db(transaction=True)
def test_a_row_that_a_user_holds_is_left_for_the_next_day() -> None:
    held, free = fired("held"), fired("free")
    with second_connection() as editor:
        editor.execute(
            "SELECT 1 FROM django_celery_beat_periodictask WHERE id = %s FOR UPDATE", [held.pk]
        )
        in_thread(last_runs.copy_forgotten).result(5)
    counts = PeriodicTask.objects.values_list("name", "total_run_count")
    assert dict(counts.filter(pk__in=(held.pk, free.pk))) == {"held": 0, "free": 1}
    assert last_runs.copy_forgotten() == 1


@pytest.mark.django_db(transaction=True)
def test_a_one_off_that_a_user_arms_again_meanwhile_stays_armed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = fired(one_off=True)
    # As if the user's edit fell between the start of the statement and its locks.
    paused = "ANY(%s) AND pg_advisory_xact_lock_shared(1) IS NOT NULL"
    monkeypatch.setattr(last_runs, "LOCK", last_runs.LOCK.replace("ANY(%s)", paused))
    with second_connection() as other:
        other.execute("SELECT pg_advisory_xact_lock(1)")
        copying = in_thread(lambda: last_runs.copy([row.pk]))
        wait_for(is_blocked)
        PeriodicTask.objects.filter(pk=row.pk).update(crontab=far_off(), start_time=clock.now())
        other.rollback()
        copying.result(5)
    row.refresh_from_db()
    assert row.enabled
    assert not plan_of(row).done
