"""The options of a call, checked and made columns of a run.

Instants may be given, or durations that count from Postgres's clock; each becomes two parameters
of `enqueueing.INSERT`.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from kombu.utils.json import loads

from scheduling.errors import EnqueueError
from scheduling.models import Origin, Priority
from scheduling.registry import queue_of
from scheduling.running import current

if TYPE_CHECKING:
    from scheduling.jobs import Job

LONGEST = timedelta(days=36_500)


MESSAGE = ("headers", "time_limit", "soft_time_limit", "ignore_result", "shadow",
           "replaced_task_nesting", "stamped_headers", "failure")  # fmt: skip
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


def message_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `send_task`'s options that a run keeps for its message."""
    kept = {name: options[name] for name in MESSAGE if options.get(name)}
    kept.update({name: options[name] for name in FAMILY if options.get(name) is not None})
    if options.get("ignore_result") is False and getattr(
        options.get("task_type"), "ignore_result", False
    ):
        kept["ignore_result"] = False
    if stamped := kept.get("stamped_headers"):
        kept["stamps"] = {name: options[name] for name in stamped if name in options}
    return kept


def checked_options(
    job: "Job",
    at: datetime | None,
    after: timedelta | None,
    priority: Priority | str | int | None,
    queue: str | None,
    deadline: datetime | timedelta | None,
    expires: datetime | timedelta | None,
    max_attempts: int | None,
    enqueued_by: str,
) -> dict[str, Any]:
    if max_attempts is not None and max_attempts < 1:
        raise EnqueueError(f"max_attempts must be 1 or more, not {max_attempts}.")
    return {
        **no_options(),
        **start(at, after),
        **limit("deadline", deadline),
        **limit("expires", expires),
        "task": job.name,
        "queue": queue_of(job.name, _checked_queue(queue)),
        "priority": _priority(job.priority if priority is None else priority),
        "max_attempts": max_attempts,
        "enqueued_by": _checked_asker(enqueued_by) or _asking_run(),
    }


def no_options() -> dict[str, Any]:
    return {
        **dict.fromkeys(
            ("schedule_id", "due_at", "max_attempts", "unique_key", "replay_of", "follows")
        ),
        **limit("deadline", None),
        **limit("expires", None),
        "origin": Origin.ADHOC,
        "schedule_name": "",
        "options": "{}",
        "follow_ups": "",
        "failures": 0,
        "enqueued_by": _asking_run(),
    }


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
    return value


def instant_or_seconds(value: object) -> Any:
    """Read a Celery eta or expires: ISO text, a datetime (naive: UTC), seconds, or None."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise EnqueueError(f"{value!r} is not an ISO 8601 time.") from None
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    if isinstance(value, int | float):
        return timedelta(seconds=value)
    return value


def _priority(value: Priority | str | int | None) -> Priority:
    if isinstance(value, str):
        try:
            return Priority[value.upper()]
        except KeyError:
            names = ", ".join(step.label for step in Priority)
            raise EnqueueError(f"unknown priority {value!r}: it is one of {names}.") from None
    if value is not None and value < 0:
        raise EnqueueError(f"priority must not be negative: {value}.")
    return Priority.nearest(value)


def _checked_queue(queue: str | None) -> str | None:
    if queue is not None and (not 0 < len(queue) <= 200 or "\0" in queue):
        raise EnqueueError(f"queue must have 1 to 200 characters and no NUL: {queue[:60]!r}.")
    return queue


def _checked_asker(name: str) -> str:
    if len(name) > 150 or "\0" in name:
        raise EnqueueError(f"enqueued_by must have up to 150 characters and no NUL: {name[:60]!r}.")
    return name


def checked_key(key: str | None) -> str | None:
    if key is not None and (not 0 < len(key) <= 255 or "\0" in key):
        raise EnqueueError(f"unique_key must have 1 to 255 characters and no NUL: {key[:60]!r}.")
    return key


def _asking_run() -> str:
    running = current()
    return f"run {running.id}" if running else ""
