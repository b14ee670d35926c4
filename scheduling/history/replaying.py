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

# A bulk replay must not overtake the day's work: no run starts above medium priority.
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
    """The runs of a replay: how many are final, how many have been replayed, when they were due."""

    runs: int
    replayed: int
    first_due: datetime | None
    last_due: datetime | None


class Replayed(NamedTuple):
    """How many runs were written, of how many selected; a unique key in use prevents one.

    `parts` is how many of the selected runs are parts of chords, which do not count them twice.
    """

    made: int
    tried: int
    parts: int = 0


def replay(run_id: UUID, *, by: str, sent_too: bool = False) -> Run:
    """Write a new run with a final run's task and arguments, which names the old run.

    It has the old run's follow-ups; if the old run's success has sent them, only with `sent_too`.
    `left_out` names in words the follow-ups that it does not have.

    Raises:
        SchedulingError: the run does not exist or is not final, or an unfinished run has its unique
            key.
    """
    old = Run.objects.filter(pk=run_id).first()
    if old is None:
        raise SchedulingError(f"no run has the id {run_id}.")
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
    """Count the runs that `replay_all` would replay.

    With `most`, at most so many are counted of the replayed runs, and as many of the others; lower
    ids first.
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
    """Write a new run for each final run of `runs`, up to `limit`; lower ids first.

    Each batch is a separate transaction. Runs that have been replayed already are left out unless
    `again` is given, so that an interrupted call can be repeated. Runs whose unique key an
    unfinished run has are left out too. Follow-ups that a success has sent are sent again only with
    `sent_too`.
    """
    wanted = _final(runs) if again else _final(runs).exclude(_has_been_replayed())
    made = tried = parts = 0
    last: UUID | None = None
    while tried < limit:
        after = Q() if last is None else Q(pk__gt=last)
        with transaction.atomic():
            chosen = wanted.filter(after).order_by("pk")[: min(batch, limit - tried)]
            # The insert looks for replays after this lock: a concurrent replay has ended by then.
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
