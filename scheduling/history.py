"""Which runs are meant: the ways in which people select among all that has run."""

from dataclasses import dataclass
from datetime import datetime

from django.db.models import Q, QuerySet

from scheduling.models import FINAL, Origin, Run, Schedule, State


@dataclass(frozen=True)
class Selection:
    """Runs in a state, of a schedule (by name), of a task, due from `since` until before `until`.

    What is None does not matter.
    """

    state: State | None = None
    schedule: str | None = None
    task: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def __bool__(self) -> bool:
        return any(value is not None for value in vars(self).values())

    def runs(self) -> QuerySet[Run]:
        """Return the runs that are meant, in no order."""
        runs = Run.objects.all()
        if self.state is not None:
            runs = runs.filter(state=self.state)
            if self.state in FINAL:
                runs = runs.filter(finished_at__isnull=False)  # said for the index
        if self.schedule is not None:
            runs = runs.filter(of_schedule(self.schedule))
        if self.task is not None:
            runs = runs.filter(task=self.task)
        if self.since is not None:
            runs = runs.filter(due_at__gte=self.since)
        if self.until is not None:
            runs = runs.filter(due_at__lt=self.until)
        return runs


def of_schedule(name: str) -> Q:
    """Return a condition for a schedule's runs, under every name it had.

    Where there is no schedule of that name now, those of one that had it when they were made.
    """
    found = Schedule.objects.filter(name=name).values_list("pk", flat=True).first()
    if found is None:
        return Q(schedule_name=name)
    # Said twice, once for each of the two partial indexes.
    planned = Q(schedule_id=found, origin=Origin.SCHEDULE)
    return planned | Q(schedule_id=found) & ~Q(origin=Origin.SCHEDULE)
