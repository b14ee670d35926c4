"""The schedules that benches store: many of one rule, due one after the other or all at once."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from bench.peers import REDBEAT, Peer
from bench.testbed import Testbed

TASK = "bench.tasks.nothing"

# They ran one interval ago, so they are due when they should be by every peer's way of counting.
# Neighbours in time are not neighbours on disk: `slot` is the place in time of row n.
LOAD = """
WITH rule AS (
    INSERT INTO django_celery_beat_intervalschedule (every, period) VALUES (%(every)s, 'seconds')
    RETURNING id)
INSERT INTO django_celery_beat_periodictask
    (name, task, interval_id, args, kwargs, headers, enabled, one_off, description, date_changed,
     total_run_count, start_time, last_run_at)
SELECT 'schedule ' || slot, %(task)s, rule.id, '[' || slot || ']', '{}', '{}', true, false, '',
    now(), 1, since, since
  FROM rule, generate_series(0, %(size)s - 1) n,
    LATERAL (SELECT n::bigint * 7919 %% %(size)s) AS place (slot),
    LATERAL (SELECT to_timestamp(%(due)s + %(step)s * slot - %(every)s)) AS last (since)
"""
# Makes the plans that beat would make at its own pace, in one statement.
PLAN = """
INSERT INTO scheduling_plan (schedule_id, needs_plan, next_due_at, anchor_at)
SELECT id, false, start_time + %(every)s * interval '1 s', start_time
  FROM django_celery_beat_periodictask
"""


class Stock(NamedTuple):
    """`size` schedules, each due every `every` seconds; number n first at `due` + n * `step`.

    `due` is in seconds since 1970, by Postgres's clock.
    """

    size: int
    every: int
    due: float
    step: float = 0.0

    def due_of(self, number: int) -> float:
        return self.due + number * self.step


def store(testbed: Testbed, peer: Peer, stock: Stock) -> None:
    """Empty everything; store these schedules, and no others, where the peer keeps them."""
    testbed.clear()
    if peer is REDBEAT:
        _store_in_redis(testbed, stock)
        return
    with testbed.without_triggers():
        testbed.run_named(LOAD, {**stock._asdict(), "task": TASK})
    if peer.own:
        testbed.run_named(PLAN, stock._asdict())
    testbed.settle()


def _store_in_redis(testbed: Testbed, stock: Stock) -> None:
    """Write redbeat's entries as its own `save` would, many at a time."""
    from celery.schedules import schedule
    from redbeat.decoder import RedBeatJSONEncoder, to_timestamp

    rule = schedule(run_every=timedelta(seconds=stock.every))
    for first in range(0, stock.size, 1000):
        pipeline = testbed.redis.pipeline(transaction=False)
        for number in range(first, min(first + 1000, stock.size)):
            due = datetime.fromtimestamp(stock.due_of(number), UTC)
            name = f"schedule {number}"
            definition = {
                "name": name, "task": TASK, "args": [number], "kwargs": {}, "options": {},
                "schedule": rule, "enabled": True,
            }  # fmt: skip
            meta = {"last_run_at": due - timedelta(seconds=stock.every)}
            entry: dict[Any, Any] = {
                "definition": json.dumps(definition, cls=RedBeatJSONEncoder),
                "meta": json.dumps(meta, cls=RedBeatJSONEncoder),
            }
            pipeline.hset(f"redbeat:{name}", mapping=entry)
            pipeline.zadd("redbeat::schedule", {f"redbeat:{name}": to_timestamp(due)})
        pipeline.execute()
