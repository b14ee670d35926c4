"""The next occurrences of a schedule, as its users see them."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from django_celery_beat.models import PeriodicTask

from scheduling import clock, recurrence
from scheduling.errors import ScheduleError
from scheduling.schedules.planning import spread_offset
from scheduling.schedules.rules import rule_of
from scheduling.schedules.standing import plan_of, policy_of

# Before this instant a spread, or another zone's offset, can be added without an overflow.
END = datetime(9000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class NextOccurrence:
    """An occurrence to come: when it is due, when it may start (later by the spread), and where.

    `local` is `due_at` in the rule's time zone; `dst`, `missing` and `missing_more` tell the
    effect of a change of clocks, `moved_from` and `day_off` that of its calendar, as in
    `recurrence.Occurrence`.
    """

    due_at: datetime
    run_at: datetime
    local: datetime
    dst: str
    missing: datetime | None = None
    moved_from: date | None = None
    day_off: str = ""
    missing_more: int = 0

    @property
    def missing_words(self) -> str:
        """The times that the clocks leave out, in words: "2027-03-28 02:30 and 1 more"."""
        more = f" and {self.missing_more:,} more" if self.missing_more else ""
        return f"{self.missing:%Y-%m-%d %H:%M}{more}" if self.missing else ""


def next_occurrences(
    schedule: PeriodicTask, n: int, after: datetime | None = None
) -> list[NextOccurrence]:
    """Return the next `n` occurrences (fewer if the rule ends) after an instant, by default now.

    They follow from the rule, whether or not the schedule is paused or disabled.

    Raises:
        ScheduleError: the rule cannot be evaluated.
    """
    try:
        rule = rule_of(schedule, anchor=plan_of(schedule).anchor_at)
        found = recurrence.preview(rule, after or clock.now(), n)
        found = [occurrence for occurrence in found if occurrence.due_at < END]
    except recurrence.RecurrenceError as error:
        raise ScheduleError(f"schedule {schedule.name!r}: {error}") from error
    offset = spread_offset(schedule.pk, policy_of(schedule).spread)
    return [
        NextOccurrence(
            o.due_at,
            _later(o.due_at, offset),
            o.local,
            o.dst,
            o.missing,
            o.moved_from,
            o.day_off,
            o.missing_more,
        )
        for o in found
    ]


def _later(due_at: datetime, offset: timedelta) -> datetime:
    """Return when a run may start; raw SQL can write a spread that no instant can hold."""
    try:
        return due_at + offset
    except OverflowError:
        return END
