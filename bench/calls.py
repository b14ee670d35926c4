"""calls: the cost of `delay()` to its caller, and the calls made and run per second.

In Truebeat a call is a row, in the peer a message in Redis. First nothing works on them; then a
worker does (and beat), both keep results in Postgres, and all is counted from the first call to the
start of the last run.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

from bench.evidence import JOB, Evidence
from bench.peers import OWN_APP, PLAIN_APP, TRUEBEAT, beat, worker
from bench.report import Table, load, percentile, row
from bench.testbed import BenchError, Testbed

WARM_UP = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--delays", type=int, default=2_000, metavar="N",
                        help="calls of delay(), one after the other")  # fmt: skip


def measure(testbed: Testbed) -> Table:
    from django.db import transaction

    rows = [
        row("a call, p50", 2, "ms"),
        row("a call, p99", 2, "ms"),
        row("a call in one transaction of all, p50", 2, "ms"),
        row("calls made and run, a second", 2, ""),
    ]
    for column, delay in enumerate((_delay_of(OWN_APP), _delay_of(PLAIN_APP))):
        for _ in range(testbed.options.runs):
            apart, together = _costs(testbed, delay, nullcontext), None
            if column == 0:
                together = _costs(testbed, delay, transaction.atomic)
            values = [percentile(apart, 0.5), percentile(apart, 0.99)]
            for line, value in zip(rows, values, strict=False):
                line.samples[column].values.append(value)
            if together:
                rows[2].samples[column].values.append(percentile(together, 0.5))
            rows[3].samples[column].values.append(rate := _made_and_run(testbed, delay, column))
            print(f"  column {column + 1}: p50 {values[0]:.3f} ms, p99 {values[1]:.3f} ms, "
                  f"{rate:,.0f} a second, {load()}", flush=True)  # fmt: skip
    title = f"{testbed.options.delays:,} calls of delay(), one worker with 4 children"
    return Table(title, ("Truebeat", "plain Celery, django-celery-results"), rows)


def _delay_of(name: str) -> Callable[[float], Any]:
    from bench.plain.app import app as plain
    from config.celery import app as own

    app: Any = own if name == OWN_APP else plain
    app.loader.import_default_modules()
    delay: Callable[[float], Any] = app.tasks[JOB].delay
    return delay


def _costs(
    testbed: Testbed,
    delay: Callable[[float], Any],
    around: Callable[[], AbstractContextManager[Any]],
) -> list[float]:
    """Return the milliseconds of each call."""
    testbed.clear()
    costs = []
    with around():
        for number in range(WARM_UP + testbed.options.delays):
            begun = time.perf_counter()
            delay(0.0)
            if number >= WARM_UP:
                costs.append((time.perf_counter() - begun) * 1000)
    return costs


def _made_and_run(testbed: Testbed, delay: Callable[[float], Any], column: int) -> float:
    count = testbed.options.delays
    testbed.clear()
    with Evidence() as evidence, ExitStack() as stack:
        env: dict[str, Any] = {"BENCH_EVIDENCE": evidence.path}
        if column:
            env["BENCH_RESULTS"] = "django-db"
        working = stack.enter_context(worker(PLAIN_APP if column else OWN_APP, testbed, **env))
        if not column:
            stack.enter_context(beat(TRUEBEAT, testbed))
        delay(0.0)
        if not working.wait_until(lambda: evidence.count() >= 1, 30, step=0.02):
            raise BenchError("a job did not start within 30 s.")
        begun = time.monotonic()
        for _ in range(count):
            delay(0.0)
        if not working.wait_until(lambda: evidence.count() > count, 120, step=0.02):
            raise BenchError("the calls were not all run within 120 s.")
        seconds = time.monotonic() - begun
        return float(count / seconds)
