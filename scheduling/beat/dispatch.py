"""publish: queues runs whose time has come, and pushes their hints to Redis.

Commit first, then push: a crash in between leaves queued runs without hints, which `lost_hints`
finds. The backlog stays in Postgres, where priority, deadline and cancel act on it. Redis holds
only a window of hints for each queue and priority.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from types import MappingProxyType
from typing import NamedTuple

from django.db import connection

from scheduling.beat.lanes import Lanes, window
from scheduling.beat.lost_hints import settle_unsure
from scheduling.logs import event
from scheduling.postgres.prepared import run_prepared
from scheduling.runs.hints import Broker, Hint, Lane

logger = logging.getLogger(__name__)

BATCH = 1500  # more than beat fires at a time, so that one batch empties a lane
NOTHING: Mapping[Lane, int] = MappingProxyType({})

QUEUE = """
WITH due AS MATERIALIZED (
    SELECT id FROM scheduling_run
     WHERE state = 'scheduled' AND queue = %(queue)s AND priority = %(priority)s
       AND run_at >= COALESCE(%(low)s::timestamptz, '-infinity')
       AND run_at <= statement_timestamp()
       AND (expires_at IS NULL OR expires_at > statement_timestamp())
     ORDER BY run_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED),
queued AS (
    UPDATE scheduling_run r SET state = 'queued', queued_at = clock_timestamp()
      FROM due WHERE r.id = due.id
    RETURNING r.id, r.attempt, r.task, r.queue, r.priority, r.options, r.run_at)
SELECT id, attempt, task, queue, priority, options FROM queued ORDER BY run_at, id
"""


class Published(NamedTuple):
    """The effect of one `publish`: hints pushed, and seconds until the next run may start.

    `room` says how many more hints each lane can take: 0 if runs may still wait for it.
    """

    hints: int
    next_in: float | None
    room: Mapping[Lane, int]


def publish(
    broker: Broker,
    limit: int = BATCH,
    others: Iterable[Lane] = (),
    coming: Mapping[Lane, int] = NOTHING,
    lanes: Lanes | None = None,
) -> Published:
    """Queue and push up to `limit` runs of each lane that has room in its window.

    Args:
        others: further lanes whose room is returned, although no run may wait for them.
        coming: hints that are on their way into a lane; they count as if they were there.
        lanes: the lanes that a beat knows to have work; None: look at all lanes.
    """
    if broker.unsure:
        settle_unsure(broker)
    waiting = (lanes or Lanes()).look()
    pushed, room = 0, dict[Lane, int]()
    if asked := {*waiting.due, *others}:
        # Fails before any run is queued if Redis is away or refuses writes.
        lengths = broker.lengths(asked)
        room = {lane: _room(lane, lengths[lane] + coming.get(lane, 0)) for lane in asked}
        _note_unusable(broker)
        for lane, low in waiting.due.items():
            hints = _queue(lane, min(limit, room[lane]), low)
            pushed += push(broker, hints)
            drained = len(hints) < min(limit, room[lane])
            room[lane] = room[lane] - len(hints) if drained else 0
    return Published(pushed, waiting.next_in, room)


NOTE_UNUSABLE = """
UPDATE scheduling_run SET reason = %(reason)s
 WHERE id = ANY (ARRAY(SELECT id FROM scheduling_run
        WHERE state = 'scheduled' AND queue = %(queue)s AND priority = %(priority)s
          AND run_at <= statement_timestamp() AND reason <> %(reason)s
        ORDER BY run_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED))
"""


def _note_unusable(broker: Broker) -> None:
    """Write into the runs of an unusable lane why they wait."""
    while broker.unusable:
        lane, why = broker.unusable.popitem()
        reason = f"queue {lane.queue[:60]!r} cannot be used: {why}"[:500]
        with connection.cursor() as cursor:
            cursor.execute(NOTE_UNUSABLE, {**lane._asdict(), "reason": reason, "limit": BATCH})


def push(broker: Broker, hints: Sequence[Hint]) -> int:
    """Push the hints of runs that have been queued; return how many."""
    if hints:
        broker.push(hints)
        event(logger, "hints_pushed", hints=len(hints))
    return len(hints)


class Pushes:
    """Pushes of one batch while the next is fired: Redis and Postgres work at the same time."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")
        self._lanes: Mapping[Lane, int] = NOTHING
        self._under_way: Future[int] | None = None

    def begin(self, hints: Sequence[Hint]) -> None:
        """Push hints in the background, after the last push has ended."""
        try:
            self.end()
        except Exception:
            self._broker.unsure.update(hints)
            raise
        self._lanes = Counter(Lane(hint.queue, hint.priority) for hint in hints)
        self._under_way = self._thread.submit(push, self._broker, hints)

    def coming(self) -> Mapping[Lane, int]:
        """Return how many hints of each lane are still on their way."""
        return self._lanes if self._under_way and not self._under_way.done() else NOTHING

    def end(self) -> None:
        """Wait until the last push has ended, and raise its error."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()


def _room(lane: Lane, length: int) -> int:
    return max(window(lane) - length, 0)


def _queue(lane: Lane, limit: int, low: datetime | None = None) -> list[Hint]:
    """Queue up to `limit` due runs of the lane whose `run_at` is not before `low`."""
    if limit <= 0:
        return []
    parameters = {**lane._asdict(), "limit": limit, "low": low}
    return [Hint(*row) for row in run_prepared(QUEUE, parameters)]
