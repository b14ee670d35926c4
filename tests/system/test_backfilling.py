"""A backfill with real processes: its pace, its nominal times, and a beat that dies meanwhile."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from scheduling import schedules
from scheduling.history import backfilling
from scheduling.models import Backfill, Run, State
from tests.scheduling.ledger import crontab, schedule, set_plan
from tests.system.processes import System
from tests.waiting import wait_for

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOURS = 10


def started(evidence: Path, task: str, *args: object, concurrency: int) -> Backfill:
    """Start a backfill of the ten hours up to noon."""
    row = schedule("hourly", task=task, args=json.dumps([str(evidence), *args]),
                   crontab=crontab("0"))  # fmt: skip
    set_plan(row, datetime(2099, 1, 1, tzinfo=UTC))
    since = NOON - timedelta(hours=HOURS - 1)
    hourly = schedules.named(row.name)
    return backfilling.start(hourly, since, NOON, by="ann", concurrency=concurrency)


def count(state: State) -> int:
    return Run.objects.filter(state=state).count()


def at_once(evidence: Path) -> int:
    """Return how many jobs were at work at once, at most."""
    most = now = 0
    for line in evidence.read_text().splitlines():
        now += 1 if line.startswith("start") else -1
        most = max(most, now)
    return most


def test_jobs_get_their_nominal_times_in_order_though_beat_is_killed_meanwhile(
    system: System, evidence: Path
) -> None:
    started(evidence, "tests.jobs.tasks.write", concurrency=1)
    first = system.beat()
    system.ready_worker()
    wait_for(lambda: count(State.SUCCEEDED) >= 2, timeout=20)
    first.kill()
    system.beat()
    wait_for(lambda: count(State.SUCCEEDED) == HOURS, timeout=30)
    told = [line.split()[2] for line in evidence.read_text().splitlines()]
    dues = [NOON - timedelta(hours=hours) for hours in reversed(range(HOURS))]
    assert told == [due.isoformat() for due in dues]


def test_no_more_are_at_work_than_it_may_have_and_cancelling_ends_the_rest(
    system: System, evidence: Path
) -> None:
    backfill = started(evidence, "tests.jobs.tasks.sleep", 0.2, concurrency=2)
    for _ in range(2):
        system.beat()
    system.ready_worker(4)
    wait_for(lambda: count(State.SUCCEEDED) >= 4, timeout=20)
    backfilling.cancel(backfill.pk, by="ann")
    wait_for(lambda: not backfilling.progress(backfill).unfinished, timeout=20)
    assert at_once(evidence) <= 2
    states = backfilling.progress(backfill).states
    assert states.keys() <= {"succeeded", "cancelled"}
    assert states["cancelled"] >= HOURS - 4 - 2
