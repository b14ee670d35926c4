"""replay: makes a new run for a final run, or for each selected final run."""

import logging
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Count, Exists, Max, Min, OuterRef, Q, QuerySet

from scheduling.broker.doorbell import ring_on_commit
from scheduling.errors import SchedulingError
from scheduling.history.repeats import CHORD, repeated
from scheduling.ids import uuid7
from scheduling.logs import event
from scheduling.models import FINAL, Origin, Run
from scheduling.postgres.sql import arrays
from scheduling.runs import options
from scheduling.runs.inserting import insert_run
from scheduling.task_options import own_expiry

logger = logging.getLogger(__name__)

BATCH = 500

# A crowd does not go before the day's work: what was given more than medium starts as medium.
REPLAY = """
INSERT INTO scheduling_run
    (id, origin, schedule_id, schedule_name, task, args, kwargs, options, queue, priority, due_at,
     run_at, expires_at, max_attempts, unique_key, enqueued_by, replay_of, follow_ups)
SELECT new.id, 'replay', r.schedule_id, r.schedule_name, r.task, r.args, r.kwargs, r.options,
    r.queue, GREATEST(COALESCE(r.given_priority, r.priority), 6), r.due_at, statement_timestamp(),
    COALESCE(new.expires, statement_timestamp() + new.expires_in), r.max_attempts, r.unique_key,
    %(by)s, r.id, new.follow_ups
  FROM unnest(%(new)s::uuid[], %(old)s::uuid[], %(follow_ups)s::text[], %(expires)s::timestamptz[],
              %(expires_in)s::interval[]) AS new (id, of, follow_ups, expires, expires_in)
  JOIN scheduling_run r ON r.id = new.of
 WHERE %(again)s
    OR NOT EXISTS (SELECT 1 FROM scheduling_run earlier WHERE earlier.replay_of = r.id)
ON CONFLICT DO NOTHING
"""


class Found(NamedTuple):
    """What a replay would be of: how many final runs, how many have been replayed, due when."""

    runs: int
    replayed: int
    first_due: datetime | None
    last_due: datetime | None


class Replayed(NamedTuple):
    """How many runs were written, for how many of those meant; some have a unique key in use.

    `parts` is how many of those meant are parts of chords, which count nothing twice.
    """

    made: int
    tried: int
    parts: int = 0


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
        **options.start(None, None),
        **options.limit("expires", own_expiry(old.task)),
        "follow_ups": again.follow_ups,
        "origin": Origin.REPLAY,
        "due_at": old.due_at,
        "schedule_id": old.schedule_id,
        "schedule_name": old.schedule_name,
        "task": old.task,
        "args": old.args,
        "kwargs": old.kwargs,
        "options": old.options,
        "queue": old.queue,
        "priority": old.priority if old.given_priority is None else old.given_priority,
        "max_attempts": old.max_attempts,
        "unique_key": old.unique_key,
        "enqueued_by": by,
        "replay_of": old.pk,
    }
    run = insert_run(columns)
    if not run.created:
        raise SchedulingError(
            f"run {run.pk} has the same unique key {run.unique_key!r} and is {run.state}: nothing "
            f"was replayed."
        )
    run.left_out = again.left_out
    return run


def find(runs: QuerySet[Run], most: int | None = None) -> Found:
    """Say what `replay_all` of these runs has to do.

    With `most`, no more than that many are looked at of each, those that have been replayed and
    those that have not; the older ids first.
    """
    final = _final(runs).order_by("pk")
    fresh, replayed = (
        chosen[:most].aggregate(runs=Count("pk"), first=Min("due_at"), last=Max("due_at"))
        for chosen in (final.exclude(_has_been_replayed()), final.filter(_has_been_replayed()))
    )
    firsts, lasts = (
        [part[name] for part in (fresh, replayed) if part[name]] for name in ("first", "last")
    )
    return Found(
        runs=fresh["runs"] + replayed["runs"],
        replayed=replayed["runs"],
        first_due=min(firsts, default=None),
        last_due=max(lasts, default=None),
    )


def replay_all(
    runs: QuerySet[Run],
    *,
    by: str,
    limit: int,
    again: bool = False,
    sent_too: bool = False,
    batch: int = BATCH,
) -> Replayed:
    """Write a new run for each final one of `runs`, up to `limit`; the older ids first.

    Each batch is a transaction of its own. Those that have been replayed already are left out,
    unless `again` says otherwise: what was interrupted can be called once more. So are those whose
    unique key an unfinished run has. What a success has set off already is set off again only with
    `sent_too`.
    """
    wanted = _final(runs) if again else _final(runs).exclude(_has_been_replayed())
    made = tried = parts = 0
    last: UUID | None = None
    while tried < limit:
        after = Q() if last is None else Q(pk__gt=last)
        with transaction.atomic():
            chosen = wanted.filter(after).order_by("pk")[: min(batch, limit - tried)]
            # Locked, then looked at: who replays them at the same time is done by then.
            locked = chosen.select_for_update(no_key=True, of=("self",))
            old = list(locked.values_list("pk", "follow_ups", "state", "task"))
            follow_ups = [repeated(text, state, sent_too=sent_too) for _, text, state, _ in old]
            expiries = {task: options.limit("expires", own_expiry(task)) for *_, task in old}
            rows = [
                (uuid7(), run_id, one.follow_ups, *expiries[task].values())
                for (run_id, *_, task), one in zip(old, follow_ups, strict=True)
            ]
            made += _insert(rows, by=by, again=again)
        tried += len(old)
        parts += sum(CHORD in one.left_out for one in follow_ups)
        if len(old) < batch:
            break
        last = old[-1][0]
    event(logger, "runs_replayed", runs=made, by=by)
    return Replayed(made, tried, parts)


def _final(runs: QuerySet[Run]) -> QuerySet[Run]:
    return runs.filter(state__in=FINAL)


def _has_been_replayed() -> Exists:
    return Exists(Run.objects.filter(replay_of=OuterRef("pk")))


def _insert(rows: list[tuple[Any, ...]], *, by: str, again: bool) -> int:
    if not rows:
        return 0
    names = ("new", "old", "follow_ups", "expires", "expires_in")
    columns = dict(zip(names, arrays(rows, len(names)), strict=True))
    with connection.cursor() as cursor:
        cursor.execute(REPLAY, {**columns, "by": by[:150], "again": again})
        ring_on_commit()
        return int(cursor.rowcount)
