"""The order of starts, as one real worker with one child makes it."""

from datetime import timedelta
from pathlib import Path

from scheduling import clock
from scheduling.jobs import Call, enqueue, enqueue_many
from scheduling.models import UNFINISHED, Priority, Run, State
from tests.jobs import tasks
from tests.system.processes import System
from tests.waiting import wait_for

HIGH, LOW = Priority.HIGH, Priority.LOW


def all_are(state: State) -> bool:
    return not Run.objects.exclude(state=state).exists()


def put(evidence: Path, text: str, priority: str, ago: int, queue: str = "celery") -> None:
    """Enqueue a job that was to start some seconds ago."""
    at = clock.now() - timedelta(seconds=ago)
    enqueue(tasks.write, (str(evidence), text), at=at, priority=priority, queue=queue)


def test_by_priority_then_by_when_they_might_start(system: System, evidence: Path) -> None:
    for ago, priority in enumerate(("low", "medium", "high", "low", "medium", "high"), start=1):
        put(evidence, f"{priority} {ago}", priority, ago)
    system.beat()
    wait_for(lambda: all_are(State.QUEUED), timeout=20)
    # Urgent runs come last, and all others are in Redis already.
    for ago in (1, 3):
        put(evidence, f"front {ago}", "front", ago)
        wait_for(lambda: all_are(State.QUEUED), timeout=20)
    system.ready_worker(1)
    wait_for(lambda: all_are(State.SUCCEEDED), timeout=20)
    assert evidence.read_text().splitlines() == [
        "front 1", "front 3", "high 6", "high 3", "medium 5", "medium 2", "low 4", "low 1",
    ]  # fmt: skip


def test_priorities_hold_over_all_queues_of_a_worker(system: System, evidence: Path) -> None:
    for ago, priority in enumerate(("low", "front", "medium", "high"), start=1):
        for queue in ("b", "a"):
            put(evidence, f"{priority} {queue}", priority, ago, queue)
    system.beat()
    wait_for(lambda: all_are(State.QUEUED), timeout=20)
    system.ready_worker(1, "-Q", "a,b")
    wait_for(lambda: all_are(State.SUCCEEDED), timeout=20)
    assert evidence.read_text().splitlines() == [
        f"{priority} {queue}" for priority in ("front", "high", "medium", "low") for queue in "ab"
    ]


def test_while_high_ones_keep_a_worker_busy_old_and_late_ones_have_their_turn(
    system: System, evidence: Path
) -> None:
    def feed() -> None:
        """Keep some 20 high ones waiting at any time."""
        if Run.objects.filter(task=tasks.sleep.name, state__in=UNFINISHED).count() < 20:
            calls = (Call((str(evidence), 0.02)) for _ in range(20))
            enqueue_many(tasks.sleep, calls, priority="high")

    def waiting() -> int:
        feed()
        return Run.objects.filter(pk__in=[old.pk, late.pk], state__in=UNFINISHED).count()

    feed()
    old = enqueue(tasks.write, (str(evidence), "old"), priority="low")
    late = enqueue(
        tasks.write, (str(evidence), "late"), priority="low", deadline=timedelta(seconds=1.5)
    )
    system.beat(AGE_AFTER_SECONDS="1.5", DEADLINE_NEAR_SECONDS="0.2")
    wait_for(lambda: Run.objects.get(pk=late.pk).state == State.QUEUED, timeout=20)
    system.ready_worker(1)
    wait_for(lambda: waiting() == 0, timeout=30)
    old.refresh_from_db()
    late.refresh_from_db()
    assert (old.priority, late.priority) == (HIGH, Priority.FRONT)
    assert late.late_by is not None
    assert old.started_at is not None
    assert old.started_at - old.run_at > timedelta(seconds=3)
    # Both were started once, with any number of hints, and before high runs that came later.
    lines = evidence.read_text().splitlines()
    assert (lines.count("old"), lines.count("late")) == (1, 1)
    assert lines.index("late") < lines.index("old")
    assert Run.objects.filter(priority=HIGH, state__in=UNFINISHED).exists()
