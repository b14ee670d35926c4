"""stored: what many schedules cost while none is due, and how long a start takes with them.

The same beat is watched twice: from the start of its process to the first message (one schedule is
overdue), and then through `--idle` seconds in which nothing is due.
"""

import argparse
import tempfile
import time
from pathlib import Path

from bench.ground import Ground
from bench.peers import PEERS, TRUEBEAT, Beat, Peer
from bench.report import Row, Sample

TITLE = "Many schedules stored, none due"
COLUMNS = (PEERS[0].name, PEERS[1].name)

# Every 30 days, at instants spread over a day that begins a day from now; the first is overdue.
LOAD = """
WITH rule AS (
    INSERT INTO django_celery_beat_intervalschedule (every, period) VALUES (30, 'days')
    RETURNING id)
INSERT INTO django_celery_beat_periodictask
    (name, task, interval_id, args, kwargs, headers, enabled, one_off, description, date_changed,
     total_run_count, start_time, last_run_at)
SELECT 'stored ' || n, 'bench.tasks.nothing', rule.id, '[]', '{}', '{}', true, false, '', now(), 1,
    since, since
  FROM rule, generate_series(1, %s) n,
    LATERAL (SELECT now() - interval '30 days' + interval '1 day' + n %% 86400 * interval '1 s')
        AS spread (since)
"""
OVERDUE = """
UPDATE django_celery_beat_periodictask
   SET start_time = now() - interval '30 days', last_run_at = now() - interval '30 days'
 WHERE name = 'stored 1'
"""
# What beat would have planned, at its own pace; here in one statement.
PLANS = """
INSERT INTO scheduling_plan (schedule_id, needs_plan, next_due_at, anchor_at)
SELECT id, false, start_time + interval '30 days', start_time FROM django_celery_beat_periodictask
    ON CONFLICT (schedule_id) DO UPDATE SET needs_plan = false,
    next_due_at = excluded.next_due_at, anchor_at = excluded.anchor_at
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stored", type=int, nargs="+", default=[10, 1_000_000], metavar="N",
                        help="schedules stored, none due; several sizes may be given")  # fmt: skip
    parser.add_argument("--idle", type=float, default=10, metavar="SECONDS",
                        help="how long each idle beat is watched")  # fmt: skip


def measure(ground: Ground) -> list[Row]:
    return [row for size in ground.options.stored for row in _rows(ground, size)]


def _rows(ground: Ground, size: int) -> list[Row]:
    what = f"{size:,} stored: "
    rows = [
        Row(what + "a tick with nothing due", Sample("ms"), Sample("ms"), "milliseconds"),
        Row(what + "CPU of an idle second", Sample("ms"), Sample("ms")),
        Row(what + "process start to first message", Sample(), target="3 s"),
    ]
    ground.clear()
    with ground.without_triggers():
        ground.run(LOAD, size)
        ground.run(PLANS)
    ground.settle()
    for peer in PEERS:
        for _ in range(peer.runs(ground)):
            _once(ground, peer, rows)
    return rows


def _once(ground: Ground, peer: Peer, rows: list[Row]) -> None:
    tick, idle, start = (row.ours if peer is TRUEBEAT else row.theirs for row in rows)
    limit = peer.limit(ground)
    with tempfile.NamedTemporaryFile() as ticks, ground.without_triggers(off=not peer.own):
        _make_one_overdue(ground)
        with Beat(peer, ground, timed=True, BENCH_TICKS=ticks.name) as beat:
            in_time = beat.wait(lambda: ground.hints() > 0, limit)
            start.values.append(time.monotonic() - beat.started_at if in_time else limit)
            if in_time:
                _watch_idle(ground, beat, Path(ticks.name), tick, idle)
            else:
                start.gave_up.append(f"still reading, {beat.memory():,.0f} MB")
                tick.gave_up.append("none in time")
    print(f"  {peer.name}: start {start}, tick {tick}", flush=True)


def _make_one_overdue(ground: Ground) -> None:
    ground.redis.flushdb()
    ground.run("TRUNCATE scheduling_run")
    ground.run(OVERDUE)
    ground.run(PLANS + "WHERE scheduling_plan.next_due_at <> excluded.next_due_at")


def _watch_idle(ground: Ground, beat: Beat, ticks: Path, tick: Sample, idle: Sample) -> None:
    """Add the milliseconds of each idle tick, and those of CPU time in each idle second."""
    time.sleep(2)  # what follows a start and a firing is not idleness
    skip, before = len(ticks.read_text().splitlines()), beat.cpu()
    time.sleep(ground.options.idle)
    after = beat.cpu()
    tick.values += map(float, ticks.read_text().splitlines()[skip:])
    if before and after:
        idle.values.append((sum(after) - sum(before)) / ground.options.idle * 1000)
