"""old-snapshot: the cost of beat's look while a dump or an idle transaction keeps a snapshot.

Postgres cannot remove a dead row that a snapshot sees, from the table or from an index. So every
run that passes leaves an entry in each index of a waiting state. Here runs pass in batches, by
statements with the effect of the engine's: scheduled, queued, running, succeeded; some are held
first. Then a beat looks.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import psycopg

from bench.report import Row, Table, load, percentile, row
from bench.testbed import Testbed

if TYPE_CHECKING:
    from scheduling.beat.scheduler import Scheduler

BATCH = 10_000
LIMIT = 5  # the target, in milliseconds
SCHEDULES = 200
ON_THE_WAY = 2.0  # seconds after the last run, as a beat would look later

NEW = """
INSERT INTO scheduling_run (id, origin, task, queue, priority, schedule_id, due_at, run_at,
    expires_at, deadline, state, created_at)
SELECT gen_random_uuid(), 'adhoc', 'bench.tasks.nothing', 'celery', 6, 1 + n %% %(schedules)s,
    clock_timestamp(), clock_timestamp(), clock_timestamp() + interval '1 s',
    clock_timestamp() + interval '1 s',
    CASE WHEN n %% 10 = 0 THEN 'held' ELSE 'scheduled' END, clock_timestamp()
  FROM generate_series(1, %(count)s) n
"""
MOVES = (
    "UPDATE scheduling_run SET state = 'scheduled' WHERE state = 'held'",
    "UPDATE scheduling_run SET state = 'queued', queued_at = clock_timestamp()"
    " WHERE state = 'scheduled'",
    "UPDATE scheduling_run SET state = 'running', started_at = clock_timestamp(),"
    " lease_expires_at = clock_timestamp() + interval '1 s' WHERE state = 'queued'",
    "UPDATE scheduling_run SET state = 'succeeded', finished_at = clock_timestamp(),"
    " lease_expires_at = NULL WHERE state = 'running'",
)
FAIL = """
INSERT INTO scheduling_failure (run_id, task, exception, place, error, schedule_name, noted_at)
SELECT gen_random_uuid(), 'bench.tasks.nothing', 'Error', '', '', '', clock_timestamp()
  FROM generate_series(1, %s)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--passed", type=int, nargs="+", default=[1_000_000], metavar="N",
                        help="runs that pass under an open snapshot")  # fmt: skip
    parser.add_argument("--looks", type=int, default=300, metavar="N",
                        help="ticks of a beat that are measured afterwards")  # fmt: skip


def measure(testbed: Testbed) -> Table:
    rows: list[Row] = []
    testbed.clear()
    with old_snapshot(testbed):
        done = 0
        for size in sorted({0, *testbed.options.passed}):
            let_pass(testbed, size - done)
            done = size
            rows += _rows(testbed, size)
    return Table("Runs that have passed under an old snapshot", ["Truebeat"], rows)


@contextmanager
def old_snapshot(testbed: Testbed) -> Iterator[None]:
    """Keep a snapshot as a dump does, and read nothing."""
    with psycopg.connect(testbed.env["DATABASE_URL"], application_name="bench, a dump") as dump:
        dump.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        dump.execute("SELECT 1")
        yield


def let_pass(testbed: Testbed, count: int) -> None:
    """Let runs pass through all states, as many at a time as the engine's slowest minute has."""
    for start in range(0, count, BATCH):
        size = min(BATCH, count - start)
        testbed.run_named(NEW, {"count": size, "schedules": SCHEDULES})
        for move in MOVES:
            testbed.run(move)
        testbed.run(FAIL, size // 100)
        testbed.run("DELETE FROM scheduling_failure")
        if start % (10 * BATCH) == 0:
            print(f"  {start + size:,} have passed, {load()}", flush=True)


def _rows(testbed: Testbed, size: int) -> list[Row]:
    tick = row(f"{size:,} passed: a tick with nothing due", 1, "ms", most=LIMIT)
    worst = row(f"{size:,} passed: p99 of them", 1, "ms")
    time.sleep(ON_THE_WAY)
    values = _ticks(testbed)
    tick.samples[0].values += values
    worst.samples[0].values.append(percentile(values, 0.99))
    print(f"  {size:,} passed: {tick.samples[0]}, p99 {worst.samples[0]}, {load()}", flush=True)
    return [tick, worst]


def _ticks(testbed: Testbed) -> list[float]:
    """Return the milliseconds of ticks of a beat in this process, its first ones left out."""
    beat = _beat()
    values = [_timed(beat) for _ in range(testbed.options.looks + 20)]
    return values[20:]


def _timed(beat: "Scheduler") -> float:
    began = time.perf_counter()
    beat.run_once()
    spent = (time.perf_counter() - began) * 1000
    time.sleep(0.01)
    return spent


def _beat() -> "Scheduler":
    from celery import current_app

    from scheduling.beat.scheduler import Scheduler

    return partial(Scheduler, app=current_app)(lazy=True)
