"""What commands print: the contract's JSON shapes, aligned tables, times as people read them."""

import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from typing import Any

from scheduling import clock as ledger_clock
from scheduling.history.backfilling import Extent, Progress
from scheduling.models import Backfill, Calendar, FailureGroup, Policy, Run
from scheduling.recurrence import WEEKDAYS
from scheduling.registry import attempts_allowed
from scheduling.schedules import NextOccurrence
from scheduling.schedules.editing import Edit
from scheduling.schedules.standing import Standing
from scheduling.schedules.upgrade_check import Moved

Row = tuple[str, ...]

GAP = "  "
# A table's columns are fitted to its first rows, so that a long one can be printed as it is read.
FITTED_ROWS = 500
NARROWEST = 8


def instant_json(at: datetime | None) -> str | None:
    """Return an instant as ISO 8601 in UTC, as `date` and `jq` read it."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z") if at else None


def schedule_json(standing: Standing) -> dict[str, Any]:
    """Return the contract's shape of a schedule."""
    schedule = standing.schedule
    return {
        "name": schedule.name,
        "task": schedule.task,
        "rule": standing.rule,
        "timezone": standing.timezone,
        "enabled": schedule.enabled,
        "next_due_at": instant_json(standing.next_due_at),
        "last_due_at": instant_json(standing.last_due_at),
        "policy": policy_json(standing.policy),
    }


def policy_json(policy: Policy) -> dict[str, Any]:
    """Return a policy; its durations are in seconds."""
    return {
        "catch_up": policy.catch_up,
        "catch_up_window": _seconds(policy.catch_up_window),
        "overlap": policy.overlap,
        "spread": _seconds(policy.spread),
        "max_attempts": policy.max_attempts,
        "deadline_after": _seconds(policy.deadline_after),
        "calendar": policy.calendar.name if policy.calendar else None,
        "excluded_day": policy.excluded_day,
        "pause_after_failures": policy.pause_after_failures,
        "paused_at": instant_json(policy.paused_at),
        "paused_until": instant_json(policy.paused_until),
        "pause_reason": policy.pause_reason,
        "paused_by": policy.paused_by,
        "owner": policy.owner,
        "managed_by": policy.managed_by,
    }


def edit_json(edit: Edit) -> dict[str, Any]:
    """Return what an edit changes: pairs of what was and what is then; durations in seconds."""
    found = edit.occurrences
    changes = {**({"rule": edit.rule} if edit.rule else {}), **edit.columns, **edit.policy}
    return {
        "changes": {name: [_value(old), _value(new)] for name, (old, new) in changes.items()},
        "occurrences": found
        and {
            "added": found.added,
            "removed": found.removed,
            "kept": found.kept,
            "moved": found.moved and [instant_json(instant) for instant in found.moved],
            "until": instant_json(found.until),
        },
    }


def moved_json(moved: Moved) -> dict[str, Any]:
    """Return a schedule whose next instant an upgrade has moved."""
    return {
        "name": moved.name,
        "planned": instant_json(moved.planned),
        "now": instant_json(moved.now),
        "problem": moved.problem,
        "version": moved.version,
    }


def occurrence_json(occurrence: NextOccurrence) -> dict[str, Any]:
    """Return the contract's shape of an occurrence to come.

    Where its calendar did something to it, `moved_from` says from which day, or `skipped` why;
    where the clocks did, `missing` is the first wall-clock time that does not exist, and
    `missing_more` how many follow it.
    """
    shape: dict[str, Any] = {
        "due_at": instant_json(occurrence.due_at),
        "run_at": instant_json(occurrence.run_at),
        "local": occurrence.local.isoformat(),
        "dst": occurrence.dst,
    }
    if occurrence.missing:
        shape["missing"] = occurrence.missing.isoformat()
    if occurrence.missing_more:
        shape["missing_more"] = occurrence.missing_more
    if occurrence.moved_from:
        shape["moved_from"] = occurrence.moved_from.isoformat()
    if occurrence.day_off:
        shape["skipped"] = occurrence.day_off
    return shape


def backfill_json(backfill: Backfill, progress: Progress) -> dict[str, Any]:
    """Return a backfill, and how many of its runs are in each state."""
    return {
        "id": str(backfill.pk),
        "schedule": backfill.schedule_name,
        "from": instant_json(backfill.since),
        "to": instant_json(backfill.until),
        "concurrency": backfill.concurrency,
        "runs": backfill.run_count,
        "states": progress.states,
        "created_at": instant_json(backfill.created_at),
        "created_by": backfill.created_by,
        "cancelled_at": instant_json(backfill.cancelled_at),
        "cancelled_by": backfill.cancelled_by,
    }


def extent_json(schedule: str, extent: Extent, backfill: Backfill | None) -> dict[str, Any]:
    """Return what a backfill would run, or runs: `id` is null in a dry run."""
    return {
        "id": str(backfill.pk) if backfill else None,
        "schedule": schedule,
        "from": instant_json(extent.since),
        "to": instant_json(extent.until),
        "runs": len(extent.instants),
        "first": instant_json(min(extent.instants, default=None)),
        "last": instant_json(max(extent.instants, default=None)),
        "left_out": extent.done,
        "left_to_beat": extent.pending,
    }


def calendar_json(calendar: Calendar) -> dict[str, Any]:
    """Return a calendar with its own dates; weekdays by their first three letters."""
    return {
        "name": calendar.name,
        "description": calendar.description,
        "weekdays": weekday_names(calendar.weekdays),
        "country": calendar.country or None,
        "subdivision": calendar.subdivision or None,
        "dates": [
            {"date": day.date.isoformat(), "reason": day.reason}
            for day in sorted(calendar.dates.all(), key=lambda day: day.date)
        ],
        "schedules": calendar.policies.count(),
    }


def days_off_words(calendar: Calendar) -> str:
    """Return a calendar's days off in a line: `sat, sun; holidays of DE-BY; 2 dates`."""
    place = "-".join(filter(None, (calendar.country, calendar.subdivision)))
    dates = len(calendar.dates.all())
    parts = (
        ", ".join(weekday_names(calendar.weekdays)),
        f"holidays of {place}" if place else "",
        f"{dates} date{'' if dates == 1 else 's'}" if dates else "",
    )
    return "; ".join(filter(None, parts)) or "none"


def weekday_names(numbers: Iterable[int]) -> list[str]:
    """Return weekdays as they are typed: sat, sun."""
    return [WEEKDAYS[number][:3].lower() for number in sorted(numbers)]


def run_json(run: Run) -> dict[str, Any]:
    """Return the contract's shape of a run."""
    return {
        "id": str(run.id),
        "task": run.task,
        "schedule": run.schedule_name or None,
        "origin": run.origin,
        "state": run.state,
        "reason": run.reason,
        "due_at": instant_json(run.due_at),
        "run_at": instant_json(run.run_at),
        "attempt": run.attempt,
        "max_attempts": attempts_allowed(run.task, run.max_attempts),
        "queued_at": instant_json(run.queued_at),
        "started_at": instant_json(run.started_at),
        "finished_at": instant_json(run.finished_at),
        "errors": run.errors,
    }


def failure_json(group: FailureGroup) -> dict[str, Any]:
    """Return a group of failures of one kind."""
    return {
        "id": str(group.pk),
        "task": group.task,
        "exception": group.exception,
        "place": group.place,
        "count": group.count,
        "first_seen_at": instant_json(group.first_seen_at),
        "last_seen_at": instant_json(group.last_seen_at),
        "error": group.last_error,
        "run": str(group.last_run_id),
        "schedules": group.schedules,
        "told_at": instant_json(group.told_at),
        "resolved_at": instant_json(group.resolved_at),
        "resolved_by": group.resolved_by,
    }


def json_array(values: Iterable[Any]) -> Iterator[str]:
    """Yield the lines of a JSON array, one element each, as its elements come."""
    yield "["
    line = ""
    for value in values:
        if line:
            yield f"{line},"
        line = json.dumps(value)
    if line:
        yield line
    yield "]"


def json_lines(value: Any) -> Iterator[str]:
    """Yield the lines of one JSON value, indented for people."""
    yield from json.dumps(value, indent=2).splitlines()


def table(head: Row, rows: Iterable[Row | str], *, flexible: Sequence[int] = ()) -> Iterator[str]:
    """Yield the lines of an aligned table; on a terminal, its `flexible` columns shrink to fit.

    Elsewhere, each cell is whole.
    A row that is a text is a line of its own, between the others.
    """
    rows = map(_printable_row, rows)
    first = [head, *islice(rows, FITTED_ROWS)]
    fitted_rows = [row for row in first if not isinstance(row, str)]
    widths = [max(map(len, column)) for column in zip(*fitted_rows, strict=True)]
    if (shown := terminal_width()) is None:
        flexible = ()
    else:
        _shrink(widths, flexible, shown)
    for row in chain(first, rows):
        if isinstance(row, str):
            yield row
            continue
        cells = (
            fitted(cell, width) if column in flexible else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield GAP.join(cells).rstrip()


def terminal_width() -> int | None:
    """Return how many characters of a line the terminal shows; None in a pipe or a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _printable_row(row: Row | str) -> Row | str:
    return printable(row) if isinstance(row, str) else tuple(map(printable, row))


def fitted(text: str, width: int) -> str:
    """Return `text` padded to `width`, or cut to it in its middle: paths tell most at both ends."""
    if len(text) <= width:
        return text.ljust(width)
    tail = width // 2
    return f"{text[: width - tail - 1]}…{text[-tail:]}"


def printable(text: str) -> str:
    """Return `text` as one line that cannot steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> list[str]:
    """Return the lines of a text that jobs wrote, each safe to print."""
    return [printable(line.expandtabs(4)) for line in text.splitlines()]


def clock(at: datetime | None, now: datetime) -> str:
    """Return an instant in TIME_ZONE, as short as it can be: `today 06:00:00`."""
    if at is None:
        return "-"
    local = ledger_clock.local(at)
    if local.date() == ledger_clock.local(now).date():
        return f"today {local:%H:%M:%S}"
    return f"{local:%Y-%m-%d %H:%M}"


def full_clock(at: datetime | None, now: datetime) -> str:
    """Return an instant in TIME_ZONE to the second, with its zone and its distance from now."""
    if at is None:
        return "-"
    local = ledger_clock.local(at)
    return f"{local:%Y-%m-%d %H:%M:%S} {local.tzname()} ({distance(at, now)})"


def distance(at: datetime, now: datetime) -> str:
    """Return how far an instant is from now: `in 2h 5m`, `3d 4h ago`, `now`."""
    away = round((at - now).total_seconds())
    if away == 0:
        return "now"
    text = length(timedelta(seconds=abs(away)))
    return f"in {text}" if away > 0 else f"{text} ago"


def length(duration: timedelta) -> str:
    """Return a duration by its two largest units that count: `2h 5m`."""
    left, parts = round(duration.total_seconds()), list[str]()
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        number, left = divmod(left, size)
        if number or parts:
            parts.append(f"{number}{unit}" if number else "")
        if len(parts) == 2:
            break
    return " ".join(filter(None, parts)) or "0s"


def _shrink(widths: list[int], flexible: Sequence[int], shown: int) -> None:
    """Shorten the widest flexible columns until a line has at most `shown` characters."""
    while sum(widths) + len(GAP) * (len(widths) - 1) > shown:
        widest = max(flexible, key=lambda column: widths[column], default=None)
        if widest is None or widths[widest] <= NARROWEST:
            return
        widths[widest] -= 1


def _value(value: Any) -> Any:
    if isinstance(value, timedelta):
        return _seconds(value)
    if isinstance(value, datetime):
        return instant_json(value)
    return value if value is None or isinstance(value, int | str) else str(value)


def _seconds(duration: timedelta | None) -> float | int | None:
    if duration is None:
        return None
    seconds = duration.total_seconds()
    return int(seconds) if seconds.is_integer() else seconds
