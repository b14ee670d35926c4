"""Writes runs for Celery's calls (`delay`, `apply_async`, `send_task`), and for follow-ups."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db import connection, transaction

from scheduling.broker.doorbell import ring_on_commit
from scheduling.errors import EnqueueError
from scheduling.ids import uuid7
from scheduling.models import FINAL, Origin, Run
from scheduling.postgres.sql import arrays
from scheduling.registry import encode
from scheduling.runs import follow_ups
from scheduling.runs.inserting import KEPT, RunExistsError, insert, insert_one, waited
from scheduling.runs.message_options import DELAYED, message_options
from scheduling.runs.options import asking_run, checked, destination, start
from scheduling.runs.running import run_id_of
from scheduling.task_options import CeleryCall, instant_or_length


def enqueue_message(call: CeleryCall) -> UUID:
    """Write the run that stands for a call of Celery's; return its id.

    This process need not know the task. The call's follow-ups (links, a chain, a chord) go into its
    row. A call that the end of a run makes is a follow-up of that run, and is written with the
    others: see `outbox`.

    Raises:
        EnqueueError: the id is not a UUID; arguments, or follow-ups, are not JSON.
    """
    name, args, kwargs, countdown, eta, options = call
    sender = follow_ups.sender()
    columns = {
        "origin": Origin.ADHOC,
        "enqueued_by": asking_run(),
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
        connection.validate_no_broken_transaction()
        return insert_one(columns)
    columns |= {
        "origin": Origin.FOLLOW_UP, "follows": sender.id, "enqueued_by": f"run {sender.id}"
    }  # fmt: skip
    sender.outbox.add(columns, _insert_follow_ups)
    run_id: UUID = columns["id"]
    return run_id


SAME = ("origin", "follows", "enqueued_by")  # for all follow-ups of a run


def _insert_follow_ups(calls: list[Mapping[str, Any]]) -> None:
    """Insert follow-ups of one run. A call with the id of a run that exists goes on as that run."""
    shared = {name: calls[0][name] for name in SAME}
    each = [name for name in calls[0] if name not in shared]
    rows = [tuple(_element(columns[name]) for name in each) for columns in calls]
    parameters = {**shared, **dict(zip(each, arrays(rows, len(each)), strict=True))}
    with (
        transaction.atomic(),
        connection.cursor() as cursor,
    ):  # its error must not abort the transaction of the run's end
        cursor.execute(f"{insert(shared, each)} {KEPT} id", parameters)
        written = {run_id for (run_id,) in cursor.fetchall()}
    if written:
        ring_on_commit()
    for columns in calls:
        if columns["id"] in written:
            written.discard(columns["id"])  # a second one with the same id was not inserted
        else:
            _go_on_with(columns)


def _element(value: object) -> object:
    """Return a value as `arrays` takes it."""
    return f"{value.total_seconds():.6f} s" if isinstance(value, timedelta) else value


GO_ON = """
UPDATE scheduling_run SET reason = '', task = %(task)s, args = %(args)s, kwargs = %(kwargs)s,
    options = %(options)s, follow_ups = %(follow_ups)s, queue = %(queue)s, follows = %(follows)s,
    run_at = COALESCE(%(at)s::timestamptz, statement_timestamp() + %(after)s::interval),
    expires_at = COALESCE(%(expires)s::timestamptz,
                          statement_timestamp() + %(expires_in)s::interval)
 WHERE id = %(id)s AND state = 'scheduled' AND run_at = %(parked)s
"""


def _go_on_with(columns: Mapping[str, Any]) -> UUID:
    """Let a run that has replaced itself go on, as the last part of its replacement."""
    run_id: UUID = columns["id"]
    with connection.cursor() as cursor:
        cursor.execute(GO_ON, {**columns, "parked": follow_ups.PARKED})
        if cursor.rowcount:
            ring_on_commit(waited(columns))
            return run_id
    state = Run.objects.filter(pk=run_id).values_list("state", flat=True).first()
    if state in FINAL:
        raise follow_ups.FollowUpCancelledError(f"run {run_id} is {state} already.")
    raise RunExistsError(run_id)


def _as_uuid(value: str | UUID) -> UUID:
    run_id = run_id_of(value)
    if run_id is None:
        raise EnqueueError(
            f"task id {value!r} is not a UUID, which a run's id must be: give a UUID, or none, or"
            f" name the task in UNTRACKED_TASKS."
        )
    return run_id
