"""enqueue: writes runs of jobs that code asks for, in the caller's own transaction."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from django.db import IntegrityError, connection, transaction

from scheduling.broker.doorbell import ring_on_commit
from scheduling.errors import EnqueueError
from scheduling.ids import uuid7
from scheduling.models import Priority, Run
from scheduling.postgres.sql import arrays
from scheduling.registry import check_arguments, encode, get_job
from scheduling.runs import follow_ups
from scheduling.runs.inserting import insert, insert_run, waited
from scheduling.runs.options import checked_key, checked_options
from scheduling.task_options import routed_by_arguments

if TYPE_CHECKING:
    from celery import Task

    from scheduling.runs.follow_ups import Links

BATCH = 1000


class Call(NamedTuple):
    """One call of `enqueue_many`: the arguments, and the id its run shall have."""

    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = {}
    id: UUID | None = None


def enqueue(
    task: "Task[..., Any] | str",
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    at: datetime | None = None,
    after: timedelta | None = None,
    priority: Priority | str | int | None = None,
    queue: str | None = None,
    deadline: datetime | timedelta | None = None,
    expires: datetime | timedelta | None = None,
    unique_key: str | None = None,
    max_attempts: int | None = None,
    link: "Links" = None,
    link_error: "Links" = None,
    enqueued_by: str = "",
) -> Run:
    """Write a run of `task`, in the caller's transaction, and wake beat when that commits.

    Args:
        task: a job, or its registered name.
        at: the instant it may start; or `after`: the time from now until then.
        priority: front, high, medium (default) or low.
        deadline: the instant by which it should start, or the time from now until then.
        expires: the instant after which it must not start, or the time from now until then.
        unique_key: at most one unfinished run has this key: an existing one is returned as it is,
            and this call is dropped, its `link` and `link_error` included.
        max_attempts: failed attempts after which the run has failed; the job's own by default.
        link: a signature, or several, that become runs when this one succeeds, as in Celery.
        link_error: likewise, when it fails for good, is cancelled or expires.
        enqueued_by: the name of the caller; inside a job, by default, the job's run.

    Returns:
        The run. Its `created` is False if `unique_key` found an existing run.

    Raises:
        EnqueueError: unknown task, arguments that do not fit, or a bad option.
    """
    kwargs = kwargs or {}
    job = get_job(task if isinstance(task, str) else task.name)
    check_arguments(job, args, kwargs)
    columns = checked_options(
        job, (args, kwargs), at, after, priority, queue, deadline, expires, max_attempts,
        enqueued_by,
    )  # fmt: skip
    columns["follow_ups"] = follow_ups.asked_for(link, link_error)
    columns |= {"args": encode(args), "kwargs": encode(kwargs)}
    return insert_run({**columns, "unique_key": checked_key(unique_key)})


def enqueue_many(
    task: "Task[..., Any] | str",
    calls: Iterable[Call],
    *,
    at: datetime | None = None,
    after: timedelta | None = None,
    priority: Priority | str | int | None = None,
    queue: str | None = None,
    deadline: datetime | timedelta | None = None,
    expires: datetime | timedelta | None = None,
    max_attempts: int | None = None,
    link: "Links" = None,
    link_error: "Links" = None,
    enqueued_by: str = "",
) -> int:
    """Write a run of `task` for each of `calls`, all or none; options as for `enqueue`.

    `calls` is read as a stream, a thousand at a time, so that memory stays bounded.

    Returns:
        How many runs were written.
    """
    job = get_job(task if isinstance(task, str) else task.name)

    def columns_of(call: Call) -> dict[str, Any]:
        return checked_options(
            job, (call.args, call.kwargs), at, after, priority, queue, deadline, expires,
            max_attempts, enqueued_by,
        )  # fmt: skip

    # Only a router that is a function can send one call elsewhere than another.
    columns = None if routed_by_arguments() else columns_of(Call())
    carried = follow_ups.asked_for(link, link_error)
    stream, count = iter(calls), 0
    with transaction.atomic(), connection.cursor() as cursor:
        while batch := list(islice(stream, BATCH)):
            alike = defaultdict[tuple[Any, ...], list[tuple[UUID, str, str]]](list)
            for call in batch:
                check_arguments(job, call.args, call.kwargs)
                row = call.id or uuid7(), encode(call.args), encode(call.kwargs)
                alike[tuple((columns or columns_of(call)).items())].append(row)
            for same, rows in alike.items():
                _insert_many(cursor, {**dict(same), "follow_ups": carried}, rows)
            count += len(batch)
        if count:
            ring_on_commit(waited({"at": at}))
    return count


def _insert_many(cursor: Any, shared: dict[str, Any], rows: list[tuple[UUID, str, str]]) -> None:
    each = ("id", "args", "kwargs")
    parameters = {**shared, **dict(zip(each, arrays(rows, 3), strict=True))}
    try:
        cursor.execute(insert(shared, each), parameters)
    except IntegrityError as error:
        raise EnqueueError(f"one of the calls has the id of a run that exists: {error}") from None
