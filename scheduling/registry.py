"""The jobs that this process knows: their arguments and their attempts."""

import inspect
from collections.abc import Mapping, Sequence
from json import JSONDecoder
from typing import Any, TypeVar

from celery import current_app
from django.conf import settings
from kombu.exceptions import EncodeError
from kombu.utils.json import dumps, loads

from scheduling.base_job import BaseJob, discover
from scheduling.errors import EnqueueError
from scheduling.near_names import did_you_mean

T = TypeVar("T")

PLAIN = JSONDecoder()  # kombu's `loads` makes one for each text, for the types that it adds


def job_names() -> list[str]:
    """Return the names of all jobs of this project, sorted; Celery's own tasks are left out."""
    return sorted(name for name in known_names() if current_app.tasks[name].name == name)


def known_names() -> list[str]:
    """Return the names that jobs of this project answer to: their own, and their aliases."""
    discover()
    return sorted(name for name in current_app.tasks if not name.startswith("celery."))


def find_job(name: str) -> BaseJob | None:
    """Return the job of that name, or None if this process does not know such a job."""
    discover()
    task = current_app.tasks.get(name)
    return task if isinstance(task, BaseJob) else None


def get_job(name: str) -> BaseJob:
    """Return the job of that name.

    Raises:
        EnqueueError: the task is unknown (the message has the nearest names), or it is not a Job.
    """
    job = find_job(name)
    if job is not None:
        return job
    if name in current_app.tasks:
        raise EnqueueError(
            f"task {name!r} is not a Job: its base class must derive from scheduling.jobs.Job."
        )
    hint = did_you_mean(name, job_names(), "no job has a similar name.", cutoff=0.4)
    raise EnqueueError(f"unknown task {name!r}: {hint}")


def check_call(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> BaseJob:
    """Return the job `name` if it can be called with these arguments.

    Raises:
        EnqueueError: unknown task, or arguments that do not fit its signature or JSON.
    """
    job = get_job(name)
    check_arguments(job, args, kwargs)
    encode(args), encode(kwargs)
    return job


def check_arguments(job: BaseJob, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise EnqueueError if the arguments do not fit the job's signature."""
    if not isinstance(args, list | tuple):
        raise EnqueueError(f"positional arguments must be a JSON array, not {args!r}.")
    if not isinstance(kwargs, Mapping):
        raise EnqueueError(f"keyword arguments must be a JSON object, not {kwargs!r}.")
    # Celery makes a header of a function; a task that is a class does not have one.
    signature: Any = getattr(job, "__header__", None) or inspect.signature(job.run).bind
    try:
        signature(*args, **kwargs)
    except TypeError as error:
        raise EnqueueError(f"arguments do not fit task {job.name}: {error}") from None


def encode(value: object) -> str:
    """Return `value` as JSON text in kombu's encoding (dates, UUIDs and Decimals survive).

    Raises:
        EnqueueError: it holds something that JSON, or a Postgres text, cannot.
    """
    try:
        text: str = dumps(value)
    except (EncodeError, TypeError, ValueError) as error:
        raise EnqueueError(f"arguments are not JSON: {error}") from None
    return text


def decode_error(args: str, kwargs: str) -> str:
    """Return the fault of these JSON texts of a call, or ""."""
    try:
        decode_call(args, kwargs)
    except EnqueueError as error:
        return str(error)
    return ""


def decode_call(args: str, kwargs: str) -> tuple[list[Any], dict[str, Any]]:
    """Return a call's arguments from their JSON texts.

    Raises:
        EnqueueError: a text is not JSON, or they are not an array and an object.
    """
    return _decode("args", args, list, "array"), _decode("kwargs", kwargs, dict, "object")


def _plain(text: str) -> Any:
    if text == "{}":  # of most calls
        return {}
    value, end = PLAIN.raw_decode(text) if text[:1] in "[{" else (None, -1)
    return value if end == len(text) else PLAIN.decode(text)  # which also takes spaces around it


def _decode(label: str, text: str, kind: type[T], name: str) -> T:
    try:
        value = loads(text) if "__type__" in text else _plain(text)
    except Exception as error:  # kombu's decoders of typed values can raise anything
        raise EnqueueError(f"{label} are not JSON: {text[:100]!r} ({error})") from None
    if not isinstance(value, kind):
        raise EnqueueError(f"{label} must be a JSON {name}: {text[:100]!r}")
    return value


def retries_by_itself(job: BaseJob) -> bool:
    """Return whether the job has Celery's `autoretry_for`: then that decides about retries."""
    return bool(vars(type(job)).get("autoretry_for") or getattr(job, "autoretry_for", None))


def attempts_allowed(name: str, max_attempts: int | None) -> int | None:
    """Return how many attempts may fail before a run of task `name` has failed; None: no limit.

    The number of the run or its schedule goes first, then the job's `max_attempts`, then Celery's
    own `max_retries` if the job retries by `autoretry_for`.
    """
    if max_attempts is not None:
        return max_attempts
    job = find_job(name)
    if job is not None and job.max_attempts is not None:
        return job.max_attempts
    if job is not None and retries_by_itself(job):
        retries = getattr(job, "retry_kwargs", {}).get("max_retries", job.max_retries)
        return None if retries is None else int(retries) + 1
    return int(settings.DEFAULT_MAX_ATTEMPTS)
