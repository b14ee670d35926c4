"""The options of a call: checks them, and turns them into columns of a run.

An instant may be given, or a duration that counts from Postgres's clock; each becomes two of
`inserting.INSTANTS`.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from scheduling.base_job import BaseJob
from scheduling.errors import EnqueueError
from scheduling.models import Origin, Priority
from scheduling.postgres.sql import clean
from scheduling.runs.message_options import LONGEST
from scheduling.runs.running import current
from scheduling.task_options import options_of

MOST = 32_767  # attempts


def checked_options(
    job: BaseJob,
    call: tuple[Sequence[Any], Mapping[str, Any]],
    at: datetime | None,
    after: timedelta | None,
    priority: Priority | str | int | None,
    queue: str | None,
    deadline: datetime | timedelta | None,
    expires: datetime | timedelta | None,
    max_attempts: int | None,
    enqueued_by: str,
) -> dict[str, Any]:
    if max_attempts is not None and not (type(max_attempts) is int and 1 <= max_attempts <= MOST):
        raise EnqueueError(
            f"max_attempts must be a whole number from 1 to {MOST:,}, not {max_attempts!r}."
        )
    asked = {
        "queue": checked("queue", queue, 200),
        "priority": None if priority is None else _priority(priority),
    }
    found = destination(job.name, *call, {k: v for k, v in asked.items() if v is not None})
    if expires is not None:
        found |= limit("expires", expires)
    return {
        **start(at, after),
        **limit("deadline", deadline),
        **found,
        "origin": Origin.ADHOC,
        "task": job.name,
        "max_attempts": max_attempts,
        "enqueued_by": checked("enqueued_by", enqueued_by or None, 150) or asking_run(),
    }


def destination(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], asked: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the columns that say where a run goes and when it expires; see `task_options`."""
    found = options_of(name, args, kwargs, asked)
    return {
        "queue": found.queue, "priority": found.priority, **limit("expires", found.expires)
    }  # fmt: skip


def start(at: datetime | timedelta | None, after: timedelta | None) -> dict[str, Any]:
    if at is not None and after is not None:
        raise EnqueueError("give `at` or `after`, not both.")
    if after is not None:
        _check_duration("after", after)
    return {"at": _aware("at", at), "after": after or timedelta(0)}


def limit(name: str, value: datetime | timedelta | None) -> dict[str, Any]:
    if isinstance(value, timedelta):
        _check_duration(name, value)
        return {name: None, f"{name}_in": value}
    return {name: _aware(name, value), f"{name}_in": None}


def _check_duration(name: str, value: object) -> None:
    if not isinstance(value, timedelta):
        raise EnqueueError(f"`{name}` must be a timedelta, not {value!r}.")
    if not timedelta(0) <= value <= LONGEST:
        raise EnqueueError(f"`{name}` must be from 0 to {LONGEST.days:,} days, not {value}.")


def _aware(name: str, value: Any) -> datetime | None:
    if value is not None and not (isinstance(value, datetime) and value.tzinfo):
        raise EnqueueError(f"`{name}` must be a datetime with a time zone, not {value!r}.")
    try:
        return value and value.astimezone(UTC)
    except OverflowError:
        raise EnqueueError(
            f"`{name}` must be between the years 1 and 9999 in UTC, not {value!r}."
        ) from None


def _priority(value: Priority | str | int | None) -> Priority:
    if isinstance(value, str):
        try:
            return Priority[value.upper()]
        except KeyError:
            names = ", ".join(step.label for step in Priority)
            raise EnqueueError(f"unknown priority {value!r}: it is one of {names}.") from None
    if value is not None and not (isinstance(value, int) and value >= 0):
        raise EnqueueError(f"priority must be a name, or a number that is not negative: {value!r}.")
    return Priority.nearest(value)


def checked_key(key: str | None) -> str | None:
    return checked("unique_key", key, 255)


def checked(name: str, text: str | None, longest: int) -> str | None:
    """Return a text that Postgres takes, or None."""
    if text is None:
        return None
    if not isinstance(text, str) or not 0 < len(text) <= longest or clean(text) != text:
        shown = text[:60] if isinstance(text, str) else text
        raise EnqueueError(
            f"{name} must have 1 to {longest} characters, no NUL and no lone surrogate: {shown!r}."
        )
    return text


def asking_run() -> str:
    """Return how a run names the run that enqueues it; "" outside a job."""
    running = current()
    return f"run {running.id}" if running else ""
