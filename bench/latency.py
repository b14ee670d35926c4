"""latency: from the call of `enqueue` to the start of its job, on an idle system.

The call's own time counts. The peer is plain Celery: from `send_task` to the start.
"""

import argparse
import random
import time
from collections.abc import Callable

from bench.evidence import JOB, Evidence, figures
from bench.peers import OWN_APP, PLAIN_APP, TRUEBEAT, beat, worker
from bench.report import Table, load, row
from bench.testbed import BenchError, Testbed

WARM_UP = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--calls", type=int, default=100, metavar="N",
                        help="calls on an idle system, one after the other")  # fmt: skip


def measure(testbed: Testbed) -> Table:
    rows = [
        row("p50", 2, "ms", most=20),
        row("p99", 2, "ms"),
        row("worst", 2, "ms"),
    ]
    for column, once in enumerate((_ours, _theirs)):
        late = once(testbed)
        for line, value in zip(rows, figures(late), strict=True):
            line.samples[column].values.append(value)
        p50, p99, worst = figures(late)
        print(f"  column {column + 1}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, worst {worst:.1f} ms, "
              f"{load()}", flush=True)  # fmt: skip
    title = f"From one call to its start, idle ({testbed.options.calls} calls)"
    return Table(title, ("Truebeat, enqueue", "plain Celery, send_task"), rows)


def _ours(testbed: Testbed) -> list[float]:
    from scheduling.jobs import enqueue

    testbed.clear()
    with (
        Evidence() as evidence,
        beat(TRUEBEAT, testbed),
        worker(OWN_APP, testbed, BENCH_EVIDENCE=evidence.path),
    ):
        return _call(testbed, evidence, lambda now: enqueue(JOB, (now,)))


def _theirs(testbed: Testbed) -> list[float]:
    from bench.plain.app import app

    testbed.clear()
    with Evidence() as evidence, worker(PLAIN_APP, testbed, BENCH_EVIDENCE=evidence.path):
        return _call(testbed, evidence, lambda now: app.send_task(JOB, (now,)))


def _call(testbed: Testbed, evidence: Evidence, send: Callable[[float], object]) -> list[float]:
    for sent in range(WARM_UP):
        send(time.time())
        _until(evidence, sent + 1)
    since = time.time()
    for sent in range(testbed.options.calls):
        time.sleep(random.uniform(0.05, 0.15))  # not in step with anything
        send(time.time())
        _until(evidence, WARM_UP + sent + 1)
    return evidence.lateness(since)


def _until(evidence: Evidence, count: int) -> None:
    deadline = time.monotonic() + 30
    while evidence.count() < count:
        if time.monotonic() > deadline:
            raise BenchError("a job did not start within 30 s.")
        time.sleep(0.001)
