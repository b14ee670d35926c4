"""Selects runs by the criteria that users give."""

from dataclasses import dataclass, replace
from datetime import datetime

from django.db.models import Q, QuerySet

from scheduling.models import FINAL, Origin, Run, Schedule, State


@dataclass(frozen=True)
class Selection:
    """Runs in a state, of a schedule (by name), of a task, due from `since` until before `until`.

    A criterion that is not given selects every run.
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
            runs = runs.filter(in_state(self.state))
        if self.schedule is not None:
            runs = runs.filter(of_schedule(self.schedule))
        if self.task is not None:
            runs = runs.filter(of_task(self.task) if self.state is None else Q(task=self.task))
        if self.since is not None:
            runs = runs.filter(due_at__gte=self.since)
        if self.until is not None:
            runs = runs.filter(due_at__lt=self.until)
        return runs

    def newest(self, limit: int, *unread: str) -> QuerySet[Run]:
        """Return the newest `limit` of these runs, the newest first: their ids sort by time.

        The `unread` columns are left out.

        With a task, final and unfinished runs are read separately, each by an index. The condition
        is `>=` and `<=` and the task is in the order, because with `=` Postgres might walk all runs
        from the newest on, which is quick only if the task has run lately.
        """
        if self.task is None or self.schedule is not None:
            return self.runs().defer(*unread).order_by("-pk")[:limit]
        runs = replace(self, task=None).runs().defer(*unread)
        runs = runs.filter(task__gte=self.task, task__lte=self.task)
        ended = runs.filter(finished_at__isnull=False)
        parts = [part.order_by("-task", "-pk")[:limit] for part in (ended, runs.filter(NOT_ENDED))]
        if self.state is not None:
            return parts[self.state not in FINAL]
        return parts[0].union(parts[1], all=True).order_by("-pk")[:limit]


# Each part has the condition of a partial index.
HELD = Q(state=State.HELD, backfill_id__isnull=True) | Q(
    state=State.HELD, backfill_id__isnull=False
)
NOT_ENDED = Q(state=State.SCHEDULED) | Q(state=State.QUEUED) | Q(state=State.RUNNING) | HELD


def in_state(state: State) -> Q:
    """Return a condition for the runs in a state, in the form of its index."""
    if state in FINAL:
        return Q(state=state, finished_at__isnull=False)
    return HELD if state == State.HELD else Q(state=state)


def to_come(now: datetime) -> Q:
    """Return a condition for the runs due after `now`, none of which can have succeeded (I4)."""
    others = [state for state in FINAL if state != State.SUCCEEDED]
    return Q(due_at__gt=now) & (NOT_ENDED | Q(state__in=others, finished_at__isnull=False))


def of_origin(origin: Origin) -> Q:
    """Return a condition for the runs of an origin; some origins have an index."""
    marks = {Origin.REPLAY: "replay_of", Origin.BACKFILL: "backfill_id"}
    mark = Q(**{f"{marks[origin]}__isnull": False}) if origin in marks else Q()
    return Q(origin=origin) & mark


def of_task(name: str) -> Q:
    """Return a condition for a task's runs, for the indexes of final and of unfinished runs."""
    return Q(task=name) & (Q(finished_at__isnull=False) | NOT_ENDED)


def of_schedule(name: str) -> Q:
    """Return a condition for a schedule's runs, under every name that it has had.

    If no schedule has that name now, the runs of schedules that had it when the runs were made.
    """
    found = Schedule.objects.filter(name=name).values_list("pk", flat=True).first()
    if found is None:
        return Q(schedule_name=name)
    # The same twice, once for each of the two partial indexes.
    planned = Q(schedule_id=found, origin=Origin.SCHEDULE)
    return planned | Q(schedule_id=found) & ~Q(origin=Origin.SCHEDULE)
