"""recover: compares queued runs with the lists in Redis, and pushes missing hints again."""

import logging
import time
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection

from scheduling.beat.lanes import window
from scheduling.logs import event
from scheduling.postgres.identity import ask_ledger_id
from scheduling.runs.hints import PIECE, UNUSABLE, Broker, Hint, Lane

logger = logging.getLogger(__name__)

BATCH = 1500  # hints that are pushed again at a time
LOST_AFTER = timedelta(seconds=3)  # a younger hint may still be on its way to Redis
LOST_BY_AGE = timedelta(minutes=10)  # the same, for a search through a very long list
SEARCH_PIECES = 5  # pieces of a very long list that one search step reads

OLD_LANES = """
SELECT queue, priority, min(queued_at) < statement_timestamp() - %(by_age)s::interval
  FROM scheduling_run
 WHERE state = 'queued' AND queued_at >= COALESCE(%(low)s::timestamptz, '-infinity')
   AND queued_at < statement_timestamp() - %(lost_after)s::interval
 GROUP BY queue, priority
"""

OLD_QUEUED = """
SELECT id FROM scheduling_run
 WHERE state = 'queued' AND queued_at >= COALESCE(%(low)s::timestamptz, '-infinity')
   AND queued_at < statement_timestamp() - %(age)s::interval
   AND queue = %(queue)s AND priority = %(priority)s
"""

REQUEUE = """
UPDATE scheduling_run SET queued_at = clock_timestamp()
 WHERE id = ANY (ARRAY(SELECT id FROM scheduling_run
        WHERE id = ANY(%(ids)s) AND state = 'queued'
          AND queued_at < statement_timestamp() - %(lost_after)s::interval
        FOR NO KEY UPDATE SKIP LOCKED))
RETURNING id, attempt, task, queue, priority, options
"""


def settle_unsure(broker: Broker) -> int:
    """Push the hints again that a failed push has left out; return how many.

    This happens before any more runs are queued. Otherwise the queued runs without hints would grow
    in number with each try, beyond all windows, and all their hints would be pushed at once.
    """
    unsure = list(broker.unsure)
    by_lane = defaultdict[Lane, set[UUID]](set)
    for hint in unsure:
        by_lane[Lane(hint.queue, hint.priority)].add(_uuid(hint.id))
    lost = list[UUID]()
    for lane, length in broker.lengths(by_lane).items():
        if not _is_too_long(lane, length):  # else `resend` looks for them, piece by piece
            lost += by_lane[lane] - broker.ids_in(lane)
    sent = _resend(broker, lost, timedelta(0)) if lost else 0
    broker.unsure.difference_update(unsure)
    return sent


def resend(broker: Broker, limit: int = BATCH, low: datetime | None = None) -> int:
    """Push the hints of queued runs again that are missing in Redis; return how many.

    A hint is missing if its id is in none of the lists, never because of its age alone: so a long
    queue causes no second hints. If plain Celery messages make a list longer than twice its window,
    it is searched piece by piece, and only for runs that were queued LOST_BY_AGE ago.

    Args:
        low: no run was queued earlier.
    """
    # After a fail-over the id may be another one, and workers refuse hints with the old id.
    ask_ledger_id()
    parameters: dict[str, Any] = {"by_age": LOST_BY_AGE, "lost_after": LOST_AFTER, "low": low}
    with connection.cursor() as cursor:
        cursor.execute(OLD_LANES, parameters)
        lanes = {Lane(queue, priority): very_old for queue, priority, very_old in cursor.fetchall()}
    if not lanes:
        return 0
    lengths = broker.lengths(lanes)
    lost = [
        run_id
        for lane, very_old in lanes.items()
        for run_id in _lost_of(broker, lane, lengths[lane], low, very_old=very_old)
    ]
    return sum(_resend(broker, lost[start : start + limit]) for start in range(0, len(lost), limit))


def _lost_of(
    broker: Broker, lane: Lane, length: int, low: datetime | None, *, very_old: bool
) -> list[UUID]:
    if length == UNUSABLE:
        return []
    if _is_too_long(lane, length):
        return _searched_for(broker, lane, low) if very_old else []
    broker.searches.pop(lane, None)
    # The list first, then the rows: a hint that is pushed or taken in between must not look lost.
    there = broker.ids_in(lane)
    return [run_id for run_id in _old_queued(lane, low) if run_id not in there]


def _is_too_long(lane: Lane, length: int) -> bool:
    """Return whether plain messages make a list too long to be searched at once."""
    return length > 2 * window(lane)


def _old_queued(lane: Lane, low: datetime | None, since: timedelta = timedelta(0)) -> list[UUID]:
    """Return the lane's queued runs whose hints could be lost `since` ago already."""
    parameters: dict[str, Any] = {**lane._asdict(), "age": since + LOST_AFTER, "low": low}
    with connection.cursor() as cursor:
        cursor.execute(OLD_QUEUED, parameters)
        return [run_id for (run_id,) in cursor.fetchall()]


class Search:
    """A search through a long list, a few pieces at a time, for runs queued before it began."""

    def __init__(self, wanted: Iterable[UUID]) -> None:
        self.missing = set(wanted)
        self._first = 0
        self._begun = time.monotonic()

    @property
    def age(self) -> timedelta:
        return timedelta(seconds=time.monotonic() - self._begun)

    def goes_on(self, broker: Broker, lane: Lane) -> bool:
        """Read the next pieces; return whether there are more.

        New messages enter at the head, where the search began, so it skips no old message.
        """
        for _ in range(SEARCH_PIECES):
            ids = broker.ids_from(lane, self._first)
            self.missing.difference_update(ids)
            self._first += PIECE
            if len(ids) < PIECE or not self.missing:
                return False
        return True


def _searched_for(broker: Broker, lane: Lane, low: datetime | None) -> list[UUID]:
    """Go on with the search through a long list; at its end, return the missing runs."""
    search: Search = broker.searches.get(lane) or Search(_old_queued(lane, low))
    broker.searches[lane] = search
    if search.goes_on(broker, lane):
        return []
    del broker.searches[lane]
    # A run that was queued again meanwhile may have its hint in a piece that was read before.
    return [run_id for run_id in _old_queued(lane, low, search.age) if run_id in search.missing]


def _uuid(run_id: UUID | str) -> UUID:
    return run_id if isinstance(run_id, UUID) else UUID(run_id)


def _resend(broker: Broker, ids: list[UUID], lost_after: timedelta = LOST_AFTER) -> int:
    parameters: dict[str, Any] = {"ids": ids, "lost_after": lost_after}
    with connection.cursor() as cursor:
        cursor.execute(REQUEUE, parameters)
        hints = [Hint(*row) for row in cursor.fetchall()]
    if hints:
        broker.push(hints)
        event(logger, "hints_resent", level=logging.WARNING, hints=len(hints))
    return len(hints)
