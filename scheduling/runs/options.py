"""The options of a call: checks them, and turns them into columns of a run.

An instant may be given, or a duration that counts from Postgres's clock; each becomes two of
`inserting.INSTANTS`.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from kombu.utils.json import dumps, loads

from scheduling.base_job import BaseJob
from scheduling.errors import EnqueueError
from scheduling.models import Origin, Priority
from scheduling.postgres.sql import clean
from scheduling.runs.running import current
from scheduling.task_options import options_of

LONGEST = timedelta(days=36_500)
MOST = 32_767  # attempts


DELAYED = "eta"  # a countdown or an ETA was asked for: `due_at` is that instant
MESSAGE = ("headers", "time_limit", "soft_time_limit", "ignore_result", "shadow",
           "replaced_task_nesting", "stamped_headers", "failure", DELAYED)  # fmt: skip
FAMILY = ("root_id", "parent_id", "group_id", "group_index")


def read_options(text: str) -> dict[str, Any]:
    """Return a run's options from their JSON text.

    Raises:
        EnqueueError: they are no JSON object.
    """
    if text == "{}":  # as most are
        return {}
    try:
        options = loads(text)
    except Exception as error:  # kombu's decoders of typed values raise whatever they like
        raise EnqueueError(f"options are not JSON: {text[:100]!r} ({error})") from None
    if not isinstance(options, dict):
        raise EnqueueError(f"options must be a JSON object: {text[:100]!r}")
    return options


def options_with(headers: str) -> str:
    """Return a run's options as JSON text, with the message headers of its schedule (JSON)."""
    return "{}" if headers in ("", "{}") else str(dumps({"headers": dict(loads(headers))}))


def message_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `send_task`'s options that a run keeps for its message."""
    kept = {name: options[name] for name in MESSAGE if options.get(name)}
    kept.update({name: options[name] for name in FAMILY if options.get(name) is not None})
    if options.get("priority") not in (None, *Priority.values):  # the column has the nearest step
        kept["priority"] = options["priority"]
    if options.get("ignore_result") is False and getattr(
        options.get("task_type"), "ignore_result", False
    ):
        kept["ignore_result"] = False
    if stamped := kept.get("stamped_headers"):
        kept["stamps"] = {name: options[name] for name in stamped if name in options}
    return kept


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
