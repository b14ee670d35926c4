"""A calendar that is edited while beat is at work: real beat, real worker."""

from datetime import timedelta
from itertools import pairwise
from pathlib import Path

from scheduling import clock, schedules
from scheduling.models import Run, State
from scheduling.schedules import Every, calendars
from tests.jobs import tasks
from tests.system.processes import System
from tests.waiting import wait_for


def test_a_date_that_is_taken_out_of_a_calendar_is_worked_on_at_once(
    system: System, evidence: Path
) -> None:
    today = clock.now().date()
    days = {today + timedelta(days=number): "closed" for number in (-1, 0, 1)}
    office = calendars.add("office", by="a test", dates=days)
    row = schedules.add(
        "often", tasks.write.name, Every(timedelta(seconds=1)), by="a test",
        args=(str(evidence), "ran"), calendar="office",
    )  # fmt: skip
    runs = Run.objects.filter(schedule_id=row.pk)
    system.beat()
    system.ready_worker(1)
    wait_for(lambda: runs.filter(state=State.SKIPPED).count() >= 2, timeout=20)
    assert {run.reason.rpartition(" ")[2] for run in runs} == {"closed"}
    office.dates.all().delete()
    wait_for(lambda: runs.filter(state=State.SUCCEEDED).count() >= 2, timeout=20)
    assert set(evidence.read_text().split()) == {"ran"}
    assert not runs.exclude(state=State.SKIPPED).filter(reason__contains="calendar").exists()
    instants = sorted(runs.values_list("due_at", flat=True))
    steps = [later - earlier for earlier, later in pairwise(instants)]
    assert not any(step % timedelta(seconds=1) for step in steps), "its anchor stays"
