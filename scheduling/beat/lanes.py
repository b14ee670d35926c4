"""Finds the lanes with runs that may start now, and the time of the next run."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from django.conf import settings

from scheduling.models import Priority
from scheduling.postgres.prepared import run_prepared
from scheduling.postgres.sql import arrays
from scheduling.runs.hints import Lane

OVERLAP = timedelta(seconds=0.5)  # a commit may take this long, and still be seen by the next look
BEFORE_ALL = datetime(1, 1, 3, tzinfo=UTC)  # earlier instants count as this one
FOREVER = datetime(9999, 1, 1, tzinfo=UTC)
FRONT_AT_LEAST = 1000  # hints that a lane of priority front takes, also with a small window

# A loose scan of the index run_scheduled: one probe for each queue and priority that has work.
WAITING_LANES = """
WITH RECURSIVE lane AS (
    (SELECT queue, priority, run_at FROM scheduling_run WHERE state = 'scheduled'
      ORDER BY queue, priority, run_at LIMIT 1)
  UNION ALL
    SELECT next.* FROM lane, LATERAL (
        SELECT queue, priority, run_at FROM scheduling_run
         WHERE state = 'scheduled' AND (queue, priority) > (lane.queue, lane.priority)
         ORDER BY queue, priority, run_at LIMIT 1) next)
SELECT queue, priority, extract(epoch FROM run_at - clock_timestamp())::float,
    CASE WHEN run_at <= clock_timestamp() THEN GREATEST(run_at, '0001-01-03Z') END,
    statement_timestamp()
  FROM (VALUES (1)) always LEFT JOIN lane ON true
"""

# A narrow look: lanes that are known to have due runs, from the earliest of these on, and runs of
# any lane whose time came between two instants. A row without a lane has the seconds until the next
# run may start, if that is soon.
KNOWN_LANES = """
SELECT lane.queue, lane.priority, -1::float, GREATEST(first.run_at, '0001-01-03Z'),
    statement_timestamp()
  FROM unnest(%(queues)s::text[], %(priorities)s::integer[], %(lows)s::timestamptz[])
    AS lane (queue, priority, low)
 CROSS JOIN LATERAL (
    SELECT run_at FROM scheduling_run
     WHERE state = 'scheduled' AND queue = lane.queue AND priority = lane.priority
       AND run_at >= COALESCE(lane.low, '-infinity') AND run_at <= statement_timestamp()
     ORDER BY run_at LIMIT 1) first
UNION ALL
SELECT come.queue, come.priority, -1::float, GREATEST(min(come.run_at), '0001-01-03Z'),
    statement_timestamp()
  FROM (SELECT queue, priority, run_at FROM scheduling_run
         WHERE state = 'scheduled' AND attempt > 0
           AND run_at >= COALESCE(%(since)s::timestamptz, '-infinity')
           AND run_at <= LEAST(%(until)s::timestamptz, statement_timestamp())
         ORDER BY run_at OFFSET 0) come
 GROUP BY come.queue, come.priority
UNION ALL
SELECT NULL, NULL, extract(epoch FROM min(run_at) - clock_timestamp())::float, NULL,
    statement_timestamp()
  FROM scheduling_run
 WHERE state = 'scheduled' AND attempt > 0 AND run_at > statement_timestamp()
   AND run_at <= LEAST(%(until)s::timestamptz, statement_timestamp() + interval '2 seconds')
"""


def window(lane: Lane) -> int:
    """Return the number of messages in a lane at which beat stops pushing hints."""
    size = int(settings.QUEUE_WINDOW)
    # Front runs do not wait behind a full window, but their list is bounded, too.
    return max(2 * size, FRONT_AT_LEAST) if lane.priority == Priority.FRONT else size


class Waiting(NamedTuple):
    """Lanes with due runs, and the seconds until the next run may start."""

    due: Mapping[Lane, datetime | None]  # with the earliest `run_at`; None: look from the beginning
    next_in: float | None


class Lanes:
    """Knows which lanes have due runs.

    A look at all lanes probes the index once for each lane, and each probe reads past the dead
    entries that an old snapshot keeps. If that takes long (`narrow`), a look reads only the runs
    that have come due since the last look, and the lanes that were found before.
    """

    def __init__(self) -> None:
        self.narrow = False
        self.took = 0.0  # seconds of the last look at all lanes
        self._due: dict[Lane, datetime | None] = {}
        self._seen: datetime | None = None  # runs with an earlier `run_at` have been looked for

    @property
    def due(self) -> Mapping[Lane, datetime | None]:
        """The lanes that had due runs at the last look."""
        return self._due

    def look(self) -> Waiting:
        """Return which lanes have work now."""
        began = time.monotonic()
        if self.narrow and self._seen is not None:
            parameters = _between(self._due, self._seen, FOREVER)
            return self._note(run_prepared(KNOWN_LANES, parameters))
        waiting = self._note(run_prepared(WAITING_LANES, {}))
        self.took = time.monotonic() - began
        return waiting

    def look_between(self, since: datetime | None, until: datetime) -> bool:
        """Look for runs whose time came between two instants; return whether it found a new one.

        Args:
            since: None stands for the beginning of time.
        """
        rows = run_prepared(KNOWN_LANES, _between({}, since, until))
        news = False
        for queue, priority, _, run_at, _ in rows:
            if queue is not None:
                news |= self.add(Lane(queue, priority), run_at)
        return news

    def add(self, lane: Lane, run_at: datetime | None) -> bool:
        """Note a due run of the lane; return whether no earlier one was known."""
        known = self._due.get(lane, FOREVER)
        if known is None or (run_at is not None and run_at >= known):
            return False
        self._due[lane] = _from(run_at)
        return True

    def rewind(self, seconds: float) -> None:
        """Let the next look include runs whose time came in the last `seconds`."""
        if self._seen is not None:
            back = min(max(seconds, 0.0), (self._seen - BEFORE_ALL).total_seconds())
            self._seen -= timedelta(seconds=back)

    def _note(self, rows: list[tuple[Any, ...]]) -> Waiting:
        self._due = {}
        later = [row[2] for row in rows if row[2] is not None and row[2] > 0]
        for queue, priority, wait, run_at, _ in rows:
            if queue is not None and wait <= 0:
                self.add(Lane(queue, priority), run_at)
        self._seen = rows[0][4] - OVERLAP
        return Waiting(dict(self._due), min(later, default=None))


def _from(instant: datetime | None) -> datetime | None:
    return None if instant is None or instant <= BEFORE_ALL else instant


def _between(
    lanes: Mapping[Lane, datetime | None], since: datetime | None, until: datetime
) -> dict[str, object]:
    queues, priorities, lows = arrays([(*lane, low) for lane, low in lanes.items()], 3)
    return {"queues": queues, "priorities": priorities, "lows": lows, "since": since,
            "until": until}  # fmt: skip
