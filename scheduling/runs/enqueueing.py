"""enqueue: writes runs that no schedule plans, in the caller's own transaction."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from django.db import IntegrityError, connection, transaction
from django_celery_beat.models import PeriodicTask
from kombu.utils.json import loads

from scheduling.broker.doorbell import ring_on_commit
from scheduling.errors import EnqueueError, SchedulingError
from scheduling.ids import uuid7
from scheduling.models import FINAL, UNFINISHED, Origin, Priority, Run
from scheduling.postgres.prepared import run_alone
from scheduling.postgres.sql import arrays
from scheduling.registry import (
    check_arguments,
    check_call,
    decode_error,
    encode,
    get_job,
)
from scheduling.runs import follow_ups
from scheduling.runs.options import (
    DELAYED,
    checked,
    checked_key,
    checked_options,
    destination,
    limit,
    message_options,
    no_options,
    options_with,
    start,
)
from scheduling.runs.repeats import repeated
from scheduling.runs.running import run_id_of
from scheduling.task_options import (
    CeleryCall,
    asked_by,
    instant_or_length,
    own_expiry,
    routed_by_arguments,
)

if TYPE_CHECKING:
    from celery import Task

    from scheduling.runs.follow_ups import Links


BATCH = 1000


class RunExistsError(EnqueueError):
    def __init__(self, run_id: object) -> None:
        super().__init__(f"there is a run with the id {run_id} already: give another one.")


# Instants may be given, or durations that count from Postgres's clock.
INSERT = """
INSERT INTO scheduling_run
    (id, args, kwargs, origin, schedule_id, schedule_name, task, options, queue, priority,
     due_at, run_at, deadline, expires_at, max_attempts, failures, unique_key, enqueued_by,
     replay_of, follows, follow_ups)
SELECT call.id, call.args, call.kwargs, %(origin)s, %(schedule_id)s, %(schedule_name)s, %(task)s,
     %(options)s, %(queue)s, %(priority)s,
     COALESCE(%(due_at)s::timestamptz, start.at), start.at,
     COALESCE(%(deadline)s::timestamptz, statement_timestamp() + %(deadline_in)s::interval),
     COALESCE(%(expires)s::timestamptz, statement_timestamp() + %(expires_in)s::interval),
     %(max_attempts)s, %(failures)s, %(unique_key)s, %(enqueued_by)s, %(replay_of)s,
     %(follows)s, %(follow_ups)s
  FROM unnest(%(ids)s::uuid[], %(args)s::text[], %(kwargs)s::text[]) AS call (id, args, kwargs),
       (SELECT COALESCE(%(at)s::timestamptz, statement_timestamp() + %(after)s::interval))
         AS start (at)
"""


# The same for one run with an id of its own and no unique key, planned once by each connection.
INSERT_ONE = """
INSERT INTO scheduling_run
    (id, args, kwargs, origin, task, options, queue, priority, due_at, run_at, expires_at,
     failures, enqueued_by, follows, follow_ups)
SELECT %(id)s::uuid, %(args)s::text, %(kwargs)s::text, %(origin)s::text, %(task)s::text,
     %(options)s::text, %(queue)s::text, %(priority)s::smallint, start.at, start.at,
     COALESCE(%(expires)s::timestamptz, statement_timestamp() + %(expires_in)s::interval),
     %(failures)s::int, %(enqueued_by)s::text, %(follows)s::uuid, %(follow_ups)s::text
  FROM (SELECT COALESCE(%(at)s::timestamptz, statement_timestamp() + %(after)s::interval))
         AS start (at)
ON CONFLICT DO NOTHING RETURNING id
"""


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
        deadline: the instant by which it should have started, or the time from now until then.
        expires: likewise, after which it must not start any more.
        unique_key: at most one unfinished run has this key: an existing one is returned as it is,
            and nothing of this call is kept, its `link` and `link_error` included.
        max_attempts: failed attempts after which the run has failed; the job's own by default.
        link: a signature, or several, that become runs when this one succeeds, as in Celery.
        link_error: likewise, when it fails for good, is cancelled or expires.
        enqueued_by: who asked; inside a job, by default, that job's run.

    Returns:
        The run. Its `created` is False where `unique_key` found one.

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
    return insert_run(
        {**columns, "unique_key": checked_key(unique_key)}, encode(args), encode(kwargs)
    )


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
                texts = dict(zip(("ids", "args", "kwargs"), arrays(rows, 3), strict=True))
                _insert_many(cursor, {**dict(same), "follow_ups": carried, **texts})
            count += len(batch)
        if count:
            ring_on_commit(_waited({"at": at}))
    return count


def _insert_many(cursor: Any, parameters: dict[str, Any]) -> None:
    try:
        cursor.execute(INSERT, parameters)
    except IntegrityError as error:
        raise EnqueueError(f"one of the calls has the id of a run that exists: {error}") from None


def enqueue_message(call: CeleryCall) -> UUID:
    """Write the run that stands for a call of Celery's; return its id.

    This process need not know the task. What the call sets off (links, a chain, a chord) goes into
    its row. A call that the end of a run makes is a follow-up of that run, and is written with the
    others: see `outbox`.

    Raises:
        EnqueueError: the id is not a UUID; arguments, or follow-ups, are not JSON.
    """
    name, args, kwargs, countdown, eta, options = call
    sender = follow_ups.sender()
    columns = {
        **no_options(),
        **start(instant_or_length(eta), None if eta else timedelta(seconds=max(countdown or 0, 0))),
        **destination(name, args or (), kwargs or {}, options),
        "id": _as_uuid(options["task_id"]) if options.get("task_id") else uuid7(),
        "args": encode(list(args or ())),
        "kwargs": encode(dict(kwargs or {})),
        "task": checked("task", name, 200),
        "options": encode(message_options({**options, DELAYED: bool(eta or countdown)})),
        "follow_ups": follow_ups.carried_in(options),
        "failures": options.get("retries") or 0,
    }
    if sender is None:
        return _insert_one(columns)
    columns |= {
        "origin": Origin.FOLLOW_UP, "follows": sender.id, "enqueued_by": f"run {sender.id}"
    }  # fmt: skip
    sender.outbox.add(columns, _insert_follow_ups)
    run_id: UUID = columns["id"]
    return run_id


def _insert_one(columns: Mapping[str, Any]) -> UUID:
    """Insert one run and ring on commit; in one round trip, where no transaction is open."""
    connection.validate_no_broken_transaction()
    if not run_alone(INSERT_ONE, columns):
        raise RunExistsError(columns["id"])
    ring_on_commit(_waited(columns))
    run_id: UUID = columns["id"]
    return run_id


SAME = ("origin", "follows", "enqueued_by")  # for all follow-ups of a run
VARYING = ("args", "kwargs", "task", "options", "queue", "priority", "at", "expires", "failures",
           "follow_ups")  # fmt: skip
DURATIONS = ("after", "expires_in")
INSERT_FOLLOW_UPS = """
INSERT INTO scheduling_run
    (id, args, kwargs, task, options, queue, priority, run_at, due_at, expires_at, failures,
     follow_ups, origin, follows, enqueued_by)
SELECT id, args, kwargs, task, options, queue, priority, start, start,
     COALESCE(expires, statement_timestamp() + expires_in), failures,
     follow_ups, %(origin)s, %(follows)s, %(enqueued_by)s
  FROM (SELECT *, COALESCE(at, statement_timestamp() + after) AS start FROM
    unnest(%(id)s::uuid[], %(args)s::text[], %(kwargs)s::text[], %(task)s::text[],
        %(options)s::text[], %(queue)s::text[], %(priority)s::smallint[], %(at)s::timestamptz[],
        %(expires)s::timestamptz[], %(failures)s::int[], %(follow_ups)s::text[],
        %(after)s::interval[], %(expires_in)s::interval[])
    AS call (id, args, kwargs, task, options, queue, priority, at, expires, failures, follow_ups,
        after, expires_in)) AS call
ON CONFLICT DO NOTHING RETURNING id
"""


def _insert_follow_ups(calls: list[Mapping[str, Any]]) -> None:
    """Insert follow-ups of one run. What has the id of a run that exists goes on with that run."""
    rows = [
        (
            str(columns["id"]),
            *map(columns.get, VARYING),
            *map(_interval, map(columns.get, DURATIONS)),
        )
        for columns in calls
    ]
    slots = ("id", *VARYING, *DURATIONS)
    parameters: dict[str, Any] = {name: calls[0][name] for name in SAME}
    parameters |= zip(slots, arrays(rows, len(slots)), strict=True)
    with transaction.atomic(), connection.cursor() as cursor:  # a refusal must not spoil the end
        cursor.execute(INSERT_FOLLOW_UPS, parameters)
        written = {run_id for (run_id,) in cursor.fetchall()}
    if written:
        ring_on_commit()
    for columns in calls:
        if columns["id"] in written:
            written.discard(columns["id"])  # a second one with the same id was not inserted
        else:
            _go_on_with(columns)


def _interval(duration: timedelta | None) -> str | None:
    return None if duration is None else f"{duration.total_seconds():.6f} s"


GO_ON = """
UPDATE scheduling_run SET reason = '', task = %(task)s, args = %(args)s, kwargs = %(kwargs)s,
    options = %(options)s, follow_ups = %(follow_ups)s, queue = %(queue)s, follows = %(follows)s,
    run_at = COALESCE(%(at)s::timestamptz, statement_timestamp() + %(after)s::interval),
    expires_at = COALESCE(%(expires)s::timestamptz,
                          statement_timestamp() + %(expires_in)s::interval)
 WHERE id = %(id)s AND state = 'scheduled' AND run_at = %(parked)s
"""


def _go_on_with(columns: Mapping[str, Any]) -> UUID:
    """Let the run that replaced itself go on, as the last part of what it replaced itself with."""
    run_id: UUID = columns["id"]
    with connection.cursor() as cursor:
        cursor.execute(GO_ON, {**columns, "parked": follow_ups.PARKED})
        if cursor.rowcount:
            ring_on_commit(_waited(columns))
            return run_id
    state = Run.objects.filter(pk=run_id).values_list("state", flat=True).first()
    if state in FINAL:
        raise follow_ups.FollowUpCancelledError(f"run {run_id} is {state} already.")
    raise RunExistsError(run_id)


def run_now(schedule: PeriodicTask, *, by: str) -> Run:
    """Write a run of the schedule's task that may start at once, beside its plan.

    Raises:
        EnqueueError: the task is unknown here, or the schedule's arguments cannot be read or fit.
    """
    args, kwargs = schedule.args or "[]", schedule.kwargs or "{}"
    if problem := decode_error(args, kwargs):
        raise EnqueueError(f"schedule {schedule.name!r}: {problem}")
    call = loads(args), loads(kwargs)
    check_call(schedule.task, *call)
    policy = getattr(schedule, "policy", None)
    asked = asked_by(schedule)
    if schedule.expire_seconds is not None:
        asked["expires"] = schedule.expire_seconds
    columns = {
        **no_options(),
        **start(None, None),
        **limit("deadline", policy and policy.deadline_after),
        **destination(schedule.task, *call, asked),
        "schedule_id": schedule.pk,
        "schedule_name": schedule.name,
        "task": schedule.task,
        "options": options_with(schedule.headers or ""),
        "max_attempts": policy and policy.max_attempts,
        "enqueued_by": by,
    }
    return insert_run(columns, args, kwargs)


def replay(run_id: UUID, *, by: str, sent_too: bool = False) -> Run:
    """Write a new run of a final one's task and arguments, which names the old one.

    It sets off what the old one was to set off; what that one's success has sent already only with
    `sent_too`. `left_out` says in words what it does not set off.

    Raises:
        SchedulingError: there is no such run, it is not final yet, or an unfinished one has its
            unique key.
    """
    old = Run.objects.filter(pk=run_id).first()
    if old is None:
        raise SchedulingError(f"there is no run {run_id}.")
    if old.state not in FINAL:
        raise SchedulingError(f"run {run_id} is {old.state}: only a finished run can be replayed.")
    again = repeated(old.follow_ups, old.state, sent_too=sent_too)
    columns = {
        **no_options(),
        **start(None, None),
        **limit("expires", own_expiry(old.task)),
        "follow_ups": again.follow_ups,
        "origin": Origin.REPLAY,
        "due_at": old.due_at,
        "schedule_id": old.schedule_id,
        "schedule_name": old.schedule_name,
        "task": old.task,
        "options": old.options,
        "queue": old.queue,
        "priority": old.priority if old.given_priority is None else old.given_priority,
        "max_attempts": old.max_attempts,
        "unique_key": old.unique_key,
        "enqueued_by": by,
        "replay_of": old.pk,
    }
    run = insert_run(columns, old.args, old.kwargs)
    if not run.created:
        raise SchedulingError(
            f"run {run.pk} has the same unique key {run.unique_key!r} and is {run.state}: nothing "
            f"was replayed."
        )
    run.left_out = again.left_out
    return run


def insert_run(columns: Mapping[str, Any], args: str, kwargs: str) -> Run:
    """Insert one run and ring on commit; return it, or the unfinished one with its unique key."""
    parameters = {
        **columns,
        "ids": [uuid7()],
        "args": [args],
        "kwargs": [kwargs],
    }
    while True:
        rows = list(Run.objects.raw(f"{INSERT} ON CONFLICT DO NOTHING RETURNING *", parameters))
        if rows:
            ring_on_commit(_waited(columns))
            return _with_created(rows[0], created=True)
        key = columns["unique_key"]
        if key is None:
            raise RunExistsError(parameters["ids"][0])
        found = Run.objects.filter(unique_key=key, state__in=UNFINISHED).first()
        if found is not None:
            return _with_created(found, created=False)


def _waited(columns: Mapping[str, Any]) -> float | None:
    """Return for how long the run might have started: not at all, or as long as its call says."""
    return 0.0 if columns["at"] is None else None


def _as_uuid(value: str | UUID) -> UUID:
    run_id = run_id_of(value)
    if run_id is None:
        raise EnqueueError(
            f"task id {value!r} is not a UUID, which a run's id must be: give a UUID, or none, or"
            f" name the task in UNTRACKED_TASKS."
        )
    return run_id


def _with_created(run: Run, *, created: bool) -> Run:
    run.created = created
    return run
