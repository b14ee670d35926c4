"""replay in bulk: new runs for all final ones that are meant, each naming the one it repeats."""

import logging
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Count, Exists, Max, Min, OuterRef, Q, QuerySet

from scheduling.broker.doorbell import ring_on_commit
from scheduling.ids import uuid7
from scheduling.logs import event
from scheduling.models import FINAL, Run
from scheduling.postgres.sql import arrays
from scheduling.runs.repeats import CHORD, repeated

logger = logging.getLogger(__name__)

BATCH = 500

# A crowd does not go before the day's work: what was given more than medium starts as medium.
REPLAY = """
INSERT INTO scheduling_run
    (id, origin, schedule_id, schedule_name, task, args, kwargs, options, queue, priority, due_at,
     run_at, max_attempts, unique_key, enqueued_by, replay_of, follow_ups)
SELECT new.id, 'replay', r.schedule_id, r.schedule_name, r.task, r.args, r.kwargs, r.options,
    r.queue, GREATEST(COALESCE(r.given_priority, r.priority), 6), r.due_at, statement_timestamp(),
    r.max_attempts, r.unique_key, %(by)s, r.id, new.follow_ups
  FROM unnest(%(new)s::uuid[], %(old)s::uuid[], %(follow_ups)s::text[]) AS new (id, of, follow_ups)
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
            old = list(locked.values_list("pk", "follow_ups", "state"))
            follow_ups = [repeated(text, state, sent_too=sent_too) for _, text, state in old]
            ids = [run_id for run_id, *_ in old]
            made += _insert(ids, [one.follow_ups for one in follow_ups], by=by, again=again)
        tried += len(ids)
        parts += sum(CHORD in one.left_out for one in follow_ups)
        if len(ids) < batch:
            break
        last = ids[-1]
    event(logger, "runs_replayed", runs=made, by=by)
    return Replayed(made, tried, parts)


def _final(runs: QuerySet[Run]) -> QuerySet[Run]:
    return runs.filter(state__in=FINAL)


def _has_been_replayed() -> Exists:
    return Exists(Run.objects.filter(replay_of=OuterRef("pk")))


def _insert(ids: list[UUID], follow_ups: list[str], *, by: str, again: bool) -> int:
    if not ids:
        return 0
    rows = [(uuid7(), *one) for one in zip(ids, follow_ups, strict=True)]
    columns = dict(zip(("new", "old", "follow_ups"), arrays(rows, 3), strict=True))
    with connection.cursor() as cursor:
        cursor.execute(REPLAY, {**columns, "by": by[:150], "again": again})
        ring_on_commit()
        return int(cursor.rowcount)
