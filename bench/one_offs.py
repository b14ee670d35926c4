"""one-offs: runs that were enqueued long before, each for an instant of its own.

From the instant at which a run is due to the start of its job, which notes it itself. The peer is
plain Celery with an ETA, at the same rate, for a shorter time: its worker holds all of them in
memory.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from bench.evidence import JOB, Evidence, figures
from bench.peers import OWN_APP, PLAIN_APP, TRUEBEAT, beat, worker
from bench.processes import Process
from bench.report import Row, Table, load, row
from bench.testbed import Testbed

STEP = 0.01  # seconds: those due within it are enqueued for one instant, in one call
LOOK_EVERY = 5  # seconds; to sum up the memory of a process takes milliseconds of its time
ENQUEUED, SENT = 3000, 900  # so many a second, at least, by `enqueue_many` and by `send_task`


SENT_AFTER = b"""
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY late), percentile_cont(0.99) WITHIN GROUP
    (ORDER BY late)
  FROM scheduling_run,
    LATERAL (SELECT extract(epoch FROM queued_at - due_at)::float * 1000) AS sent (late)
 WHERE due_at >= to_timestamp(%s)
"""


class Watched(NamedTuple):
    """Megabytes when the first was due and at the highest, of the workers and of beat."""

    worker: float
    worker_most: float
    beat: float
    beat_most: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--one-offs", type=int, default=5_000, metavar="N",
                        help="runs that are asked for ahead")  # fmt: skip
    parser.add_argument("--one-offs-for", type=float, default=10, metavar="SECONDS",
                        help="the time over which they are due")  # fmt: skip
    parser.add_argument("--workers", type=int, default=8, metavar="N",
                        help="workers that share the one-offs")  # fmt: skip
    parser.add_argument("--pool", default="solo",
                        help="where their jobs run: solo, prefork or threads")  # fmt: skip
    parser.add_argument("--peer-one-offs", type=int, default=5_000, metavar="N",
                        help="how many of the peer, at the same rate")  # fmt: skip


def measure(testbed: Testbed) -> Table:
    options = testbed.options
    rate = options.one_offs / options.one_offs_for
    theirs = min(options.peer_one_offs, options.one_offs)
    rows = [
        row("start, p50", 2, "ms", most=60),
        row("start, p99", 2, "ms", most=200),
        row("start, worst", 2, "ms"),
        row("of it, until its hint was sent: p50", 2, "ms"),
        row("of it, until its hint was sent: p99", 2, "ms"),
        row("never started", 2, "", most=0, compared=False),
        row("memory of the workers when the first is due", 2, "MB"),
        row("memory of the workers at its highest", 2, "MB"),
        row("memory of beat when the first is due", 2, "MB"),
        row("memory of beat at its highest", 2, "MB"),
    ]
    _ours(testbed, rows, options.one_offs, rate)
    if options.peer_runs:
        _theirs(testbed, rows, theirs, rate)
    title = (
        f"One-off runs, {rate:,.0f} due each second, {options.workers} workers with "
        f"pool {options.pool}, {_children(testbed)} jobs at once each"
    )
    columns = (f"Truebeat, {options.one_offs:,}", f"Celery with an ETA, {theirs:,}")
    return Table(title, columns, rows)


def _ours(testbed: Testbed, rows: list[Row], count: int, rate: float) -> None:
    from scheduling.jobs import Call, enqueue_many

    testbed.clear()
    with (
        Evidence() as evidence,
        beat(TRUEBEAT, testbed) as beating,
        _workers(OWN_APP, testbed, evidence) as working,
    ):
        enqueue_many(JOB, [Call((0.0,)) for _ in range(100)])
        working[0].wait_until(lambda: evidence.count() >= 100, 30)
        since = testbed.now() + 2 + count / ENQUEUED
        steps = int(count / rate / STEP)
        for step in range(steps):
            due = since + step * STEP
            share = count * (step + 1) // steps - count * step // steps
            enqueue_many(JOB, [Call((due,))] * share, at=datetime.fromtimestamp(due, UTC))
        _warn_if_late(testbed, since)
        watched = _watch(testbed, since, count / rate, working, beating)
        _finish(testbed, rows, 0, evidence, since, count, working, watched)


def _theirs(testbed: Testbed, rows: list[Row], count: int, rate: float) -> None:
    from bench.plain.app import app

    testbed.clear()
    with (
        Evidence() as evidence,
        _workers(PLAIN_APP, testbed, evidence) as working,
        app.producer_or_acquire() as producer,
    ):
        app.send_task(JOB, (0.0,), producer=producer)
        working[0].wait_until(lambda: evidence.count() >= 1, 30)
        since = testbed.now() + 2 + count / SENT
        for number in range(count):
            due = since + number / rate
            app.send_task(JOB, (due,), producer=producer, eta=datetime.fromtimestamp(due, UTC))
        _warn_if_late(testbed, since)
        watched = _watch(testbed, since, count / rate, working, None)
        _finish(testbed, rows, 1, evidence, since, count, working, watched)


def _children(testbed: Testbed) -> int:
    return 1 if testbed.options.pool == "solo" else int(testbed.options.concurrency)


@contextmanager
def _workers(app: str, testbed: Testbed, evidence: Evidence) -> Iterator[list[Process]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                worker(app, testbed, "--hostname", f"w{number}@%h", "--pool", testbed.options.pool,
                       concurrency=_children(testbed), BENCH_EVIDENCE=evidence.path)
            )
            for number in range(testbed.options.workers)
        ]  # fmt: skip


def _warn_if_late(testbed: Testbed, since: float) -> None:
    if testbed.now() > since:
        late = timedelta(seconds=round(testbed.now() - since))
        print(f"  (it took {late} too long to ask for all of them)")


def _watch(
    testbed: Testbed, since: float, seconds: float, working: list[Process], beating: Process | None
) -> Watched:
    time.sleep(max(since - testbed.now(), 0))
    seen = []
    while testbed.now() < since + seconds:
        of_workers = sum(process.memory() for process in working)
        seen.append((of_workers, beating.memory() if beating else 0.0))
        for process in working:
            process.check()
        time.sleep(LOOK_EVERY)
    workers, beats = zip(*seen, strict=True)
    return Watched(workers[0], max(workers), beats[0], max(beats))


def _finish(
    testbed: Testbed, rows: list[Row], column: int, evidence: Evidence, since: float, count: int,
    working: list[Process], watched: Watched,
) -> None:  # fmt: skip
    limit = testbed.options.limit if column == 0 else testbed.options.peer_limit
    working[0].wait_until(lambda: len(evidence.lateness(since - 1)) >= count, limit, step=0.5)
    late = evidence.lateness(since - 1)
    memory = list(watched) if column == 0 else list(watched)[:2]
    sent = testbed.ledger.execute(SENT_AFTER, [since]).fetchone() if column == 0 else (None, None)
    values = [*figures(late), *(sent or ()), float(count - len(late)), *memory] if late else []
    for line, value in zip(rows, values, strict=False):
        line.samples[column].values += [] if value is None else [value]
    told = ", ".join("-" if value is None else f"{value:,.0f}" for value in values)
    print(f"  column {column + 1}: p50, p99, worst; sent p50, p99; never started; memory: {told}; "
          f"{load()}", flush=True)  # fmt: skip
