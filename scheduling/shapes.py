"""The JSON shapes of schedules, runs, failures, backfills and calendars: one for every surface.

The command line (`--json`), messages to owners and every later surface take a thing's fields from
here. To add a field, add it to its `…Shape`, to the function that fills the shape, and to
docs/shapes.md, which explains each field. Instants are ISO 8601 texts in UTC, durations are
numbers of seconds, ids are texts.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NotRequired, Protocol, TypedDict, overload

from scheduling.models import Backfill, Calendar, FailureGroup, Policy, Run
from scheduling.recurrence import WEEKDAYS
from scheduling.registry import attempts_allowed
from scheduling.schedules import NextOccurrence
from scheduling.schedules.editing import Edit
from scheduling.schedules.standing import Standing
from scheduling.schedules.upgrade_check import Moved

Instant = str
Seconds = int | float


class PolicyShape(TypedDict):
    catch_up: str
    catch_up_window: Seconds | None
    overlap: str
    spread: Seconds | None
    max_attempts: int | None
    deadline_after: Seconds | None
    calendar: str | None
    excluded_day: str
    pause_after_failures: int | None
    paused_at: Instant | None
    paused_until: Instant | None
    pause_reason: str
    paused_by: str
    owner: str
    managed_by: str


class ScheduleShape(TypedDict):
    name: str
    task: str
    rule: str
    timezone: str | None
    enabled: bool
    next_due_at: Instant | None
    last_due_at: Instant | None
    policy: PolicyShape


class OccurrenceShape(TypedDict):
    due_at: Instant
    run_at: Instant
    local: str
    dst: str
    missing: NotRequired[str]
    missing_more: NotRequired[int]
    moved_from: NotRequired[str]
    skipped: NotRequired[str]


class ChangeShape(TypedDict):
    added: int
    removed: int
    kept: int
    moved: list[Instant | None] | None
    until: Instant


class EditShape(TypedDict):
    changes: dict[str, list[Any]]
    occurrences: ChangeShape | None


class MovedShape(TypedDict):
    name: str
    planned: Instant | None
    now: Instant | None
    problem: str
    version: str


class RunShape(TypedDict):
    id: str
    task: str
    schedule: str | None
    origin: str
    state: str
    reason: str
    due_at: Instant
    run_at: Instant
    attempt: int
    max_attempts: int | None
    queued_at: Instant | None
    started_at: Instant | None
    finished_at: Instant | None
    errors: list[dict[str, Any]]


class FailureGroupShape(TypedDict):
    id: str
    task: str
    exception: str
    place: str
    count: int
    first_seen_at: Instant
    last_seen_at: Instant
    error: str
    run: str
    schedules: list[str]
    told_at: Instant | None
    resolved_at: Instant | None
    resolved_by: str


# `from` is a word of Python, so these shapes cannot be classes.
BackfillShape = TypedDict(
    "BackfillShape",
    {
        "id": str,
        "schedule": str,
        "from": Instant,
        "to": Instant,
        "concurrency": int,
        "runs": int,
        "states": Mapping[str, int],
        "created_at": Instant,
        "created_by": str,
        "cancelled_at": Instant | None,
        "cancelled_by": str,
    },
)
BackfillRangeShape = TypedDict(
    "BackfillRangeShape",
    {
        "id": str | None,
        "schedule": str,
        "from": Instant,
        "to": Instant,
        "runs": int,
        "first": Instant | None,
        "last": Instant | None,
        "left_out": int,
        "left_to_beat": int,
    },
)


class DateShape(TypedDict):
    date: str
    reason: str


class CalendarShape(TypedDict):
    name: str
    description: str
    weekdays: list[str]
    country: str | None
    subdivision: str | None
    dates: list[DateShape]
    schedules: int


class Range(Protocol):
    """The occurrences of a backfill: those to run, and how many others it leaves out."""

    @property
    def since(self) -> datetime: ...
    @property
    def until(self) -> datetime: ...
    @property
    def instants(self) -> Sequence[datetime]: ...
    @property
    def done(self) -> int: ...
    @property
    def pending(self) -> int: ...


@overload
def instant(at: datetime) -> Instant: ...
@overload
def instant(at: datetime | None) -> Instant | None: ...
def instant(at: datetime | None) -> Instant | None:
    """Return an instant as ISO 8601 in UTC, as `date` and `jq` read it."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z") if at else None


def seconds(duration: timedelta | None) -> Seconds | None:
    if duration is None:
        return None
    found = duration.total_seconds()
    return int(found) if found.is_integer() else found


def weekdays(numbers: Iterable[int]) -> list[str]:
    """Return weekdays as users type them: sat, sun."""
    return [WEEKDAYS[number][:3].lower() for number in sorted(numbers)]


def schedule(standing: Standing) -> ScheduleShape:
    row = standing.schedule
    return {
        "name": row.name,
        "task": row.task,
        "rule": standing.rule,
        "timezone": standing.timezone,
        "enabled": row.enabled,
        "next_due_at": instant(standing.next_due_at),
        "last_due_at": instant(standing.last_due_at),
        "policy": policy(standing.policy),
    }


def policy(row: Policy) -> PolicyShape:
    return {
        "catch_up": row.catch_up,
        "catch_up_window": seconds(row.catch_up_window),
        "overlap": row.overlap,
        "spread": seconds(row.spread),
        "max_attempts": row.max_attempts,
        "deadline_after": seconds(row.deadline_after),
        "calendar": row.calendar.name if row.calendar else None,
        "excluded_day": row.excluded_day,
        "pause_after_failures": row.pause_after_failures,
        "paused_at": instant(row.paused_at),
        "paused_until": instant(row.paused_until),
        "pause_reason": row.pause_reason,
        "paused_by": row.paused_by,
        "owner": row.owner,
        "managed_by": row.managed_by,
    }


def edit(found: Edit) -> EditShape:
    """Return the effect of an edit: for each change the old and the new value."""
    changes = {**({"rule": found.rule} if found.rule else {}), **found.columns, **found.policy}
    occurrences = found.occurrences
    return {
        "changes": {name: [_value(old), _value(new)] for name, (old, new) in changes.items()},
        "occurrences": None
        if occurrences is None
        else {
            "added": occurrences.added,
            "removed": occurrences.removed,
            "kept": occurrences.kept,
            "moved": occurrences.moved and [instant(moved) for moved in occurrences.moved],
            "until": instant(occurrences.until),
        },
    }


def moved_by_upgrade(moved: Moved) -> MovedShape:
    """Return a schedule whose next instant an upgrade has moved."""
    return {
        "name": moved.name,
        "planned": instant(moved.planned),
        "now": instant(moved.now),
        "problem": moved.problem,
        "version": moved.version,
    }


def occurrence(coming: NextOccurrence) -> OccurrenceShape:
    """Return an occurrence to come.

    `moved_from` is there if a calendar moved it, and says from which day. `skipped` is there if a
    calendar leaves it out, and says why. `missing` is there if the clocks skip it: the first
    wall-clock time that does not exist; `missing_more` counts the others.
    """
    shape: OccurrenceShape = {
        "due_at": instant(coming.due_at),
        "run_at": instant(coming.run_at),
        "local": coming.local.isoformat(),
        "dst": coming.dst,
    }
    if coming.missing:
        shape["missing"] = coming.missing.isoformat()
    if coming.missing_more:
        shape["missing_more"] = coming.missing_more
    if coming.moved_from:
        shape["moved_from"] = coming.moved_from.isoformat()
    if coming.day_off:
        shape["skipped"] = coming.day_off
    return shape


def backfill(row: Backfill, states: Mapping[str, int]) -> BackfillShape:
    """Return a backfill; `states` counts its runs by state."""
    return {
        "id": str(row.pk),
        "schedule": row.schedule_name,
        "from": instant(row.since),
        "to": instant(row.until),
        "concurrency": row.concurrency,
        "runs": row.run_count,
        "states": states,
        "created_at": instant(row.created_at),
        "created_by": row.created_by,
        "cancelled_at": instant(row.cancelled_at),
        "cancelled_by": row.cancelled_by,
    }


def backfill_range(schedule: str, found: Range, row: Backfill | None) -> BackfillRangeShape:
    """Return the occurrences that a backfill runs; a dry run has no `row`, and its id is null."""
    return {
        "id": str(row.pk) if row else None,
        "schedule": schedule,
        "from": instant(found.since),
        "to": instant(found.until),
        "runs": len(found.instants),
        "first": instant(min(found.instants, default=None)),
        "last": instant(max(found.instants, default=None)),
        "left_out": found.done,
        "left_to_beat": found.pending,
    }


def calendar(row: Calendar) -> CalendarShape:
    """Return a calendar with its own dates, but without the public holidays that it follows."""
    return {
        "name": row.name,
        "description": row.description,
        "weekdays": weekdays(row.weekdays),
        "country": row.country or None,
        "subdivision": row.subdivision or None,
        "dates": [
            {"date": day.date.isoformat(), "reason": day.reason}
            for day in sorted(row.dates.all(), key=lambda day: day.date)
        ],
        "schedules": row.policies.count(),
    }


def run(row: Run) -> RunShape:
    """Return a run; `max_attempts` is null if its attempts are not limited."""
    return {
        "id": str(row.id),
        "task": row.task,
        "schedule": row.schedule_name or None,
        "origin": row.origin,
        "state": row.state,
        "reason": row.reason,
        "due_at": instant(row.due_at),
        "run_at": instant(row.run_at),
        "attempt": row.attempt,
        "max_attempts": attempts_allowed(row.task, row.max_attempts),
        "queued_at": instant(row.queued_at),
        "started_at": instant(row.started_at),
        "finished_at": instant(row.finished_at),
        "errors": row.errors,
    }


def failure_group(group: FailureGroup) -> FailureGroupShape:
    return {
        "id": str(group.pk),
        "task": group.task,
        "exception": group.exception,
        "place": group.place,
        "count": group.count,
        "first_seen_at": instant(group.first_seen_at),
        "last_seen_at": instant(group.last_seen_at),
        "error": group.last_error,
        "run": str(group.last_run_id),
        "schedules": group.schedules,
        "told_at": instant(group.told_at),
        "resolved_at": instant(group.resolved_at),
        "resolved_by": group.resolved_by,
    }


def _value(value: Any) -> Any:
    if isinstance(value, timedelta):
        return seconds(value)
    if isinstance(value, datetime):
        return instant(value)
    return value if value is None or isinstance(value, int | str) else str(value)
