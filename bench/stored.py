"""stored: the cost of many schedules while none is due, and the time of a start with them.

The same beat is watched twice: from the start of its process to the first message (one schedule is
overdue), and then through `--idle` seconds in which nothing is due.
"""

import argparse
import tempfile
import time
from pathlib import Path

from bench.peers import DATABASE_SCHEDULER, TRUEBEAT, Peer, beat
from bench.processes import Process
from bench.report import Row, Sample, Table, row
from bench.schedules import Stock, store
from bench.testbed import Testbed

PEERS = (TRUEBEAT, DATABASE_SCHEDULER)
SIZES = [10, 200_000]
MONTH, DAY = 30 * 86400, 86400

OVERDUE = """
UPDATE django_celery_beat_periodictask
   SET start_time = now() - interval '30 days', last_run_at = now() - interval '30 days'
 WHERE name = 'schedule 0';
UPDATE scheduling_plan p SET next_due_at = now(), anchor_at = t.start_time
  FROM django_celery_beat_periodictask t WHERE t.id = p.schedule_id AND t.name = 'schedule 0';
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--idle", type=float, default=5, metavar="SECONDS",
                        help="how long each idle beat is watched")  # fmt: skip


def measure(testbed: Testbed) -> Table:
    rows = [row for size in testbed.options.stored or SIZES for row in _rows(testbed, size)]
    return Table("Many schedules stored, none due", [peer.name for peer in PEERS], rows)


def _rows(testbed: Testbed, size: int) -> list[Row]:
    what = f"{size:,} stored: "
    rows = [
        row(what + "a tick with nothing due", 2, "ms", most=10),
        row(what + "CPU of an idle second", 2, "ms"),
        row(what + "process start to first message", 2, most=3),
    ]
    # At instants spread over a day that begins a day from now.
    spread = Stock(size, every=MONTH, due=testbed.now() + DAY, step=DAY / size)
    store(testbed, TRUEBEAT, spread)
    for column, peer in enumerate(PEERS):
        for _ in range(peer.runs(testbed)):
            _once(testbed, peer, [row.samples[column] for row in rows])
    return rows


def _once(testbed: Testbed, peer: Peer, samples: list[Sample]) -> None:
    tick, idle, start = samples
    limit = peer.limit(testbed)
    # The peer is made to tick each second, as Truebeat does.
    pace = () if peer.own else ("--max-interval", "1")
    with tempfile.NamedTemporaryFile() as ticks, testbed.without_triggers(off=not peer.own):
        testbed.redis.flushdb()
        testbed.run("TRUNCATE scheduling_run")
        with testbed.without_triggers():
            testbed.run(OVERDUE)
        with beat(peer, testbed, *pace, timed=True, BENCH_TICKS=ticks.name) as process:
            in_time = process.wait_until(lambda: testbed.hints() > 0, limit)
            start.values.append(time.monotonic() - process.started_at if in_time else limit)
            if in_time:
                _watch_idle(testbed, process, Path(ticks.name), tick, idle)
            else:
                start.gave_up.append(f"still reading, {process.memory():,.0f} MB")
                tick.gave_up.append("none in time")
    print(f"  {peer.name}: start {start}, tick {tick}", flush=True)


def _watch_idle(testbed: Testbed, beat: Process, ticks: Path, tick: Sample, idle: Sample) -> None:
    """Add the milliseconds of each idle tick, and those of CPU time in each idle second."""
    time.sleep(2)  # a start and a firing are followed by work
    skip, before = len(ticks.read_text().splitlines()), beat.cpu()
    time.sleep(testbed.options.idle)
    spent = beat.cpu().since(before)
    tick.values += map(float, ticks.read_text().splitlines()[skip:])
    idle.values.append(sum(spent) / testbed.options.idle * 1000)
