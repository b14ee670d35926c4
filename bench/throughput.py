"""throughput: no-op runs that wait already, through one worker, until the last has begun.

Truebeat's runs are rows, which beat publishes meanwhile; the peers' messages lie in Redis. All keep
a result for each run. Counted from the moment at which the first hundredth has begun.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

from bench.evidence import JOB, Evidence
from bench.peers import OWN_APP, PLAIN_APP, TRUEBEAT, beat, worker
from bench.processes import Process
from bench.report import Row, Table, Target, load, row
from bench.testbed import BenchError, Testbed


class Case(NamedTuple):
    """An app, and the place of its results."""

    name: str
    app: str
    results: str


CASES = (
    Case("Truebeat", OWN_APP, ""),
    Case("Celery, django-celery-results", PLAIN_APP, "django-db"),
    Case("Celery, results in Redis", PLAIN_APP, "redis"),
)
TRANSACTIONS = """
SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()
"""


class Done(NamedTuple):
    """The cost of a run: the milliseconds of CPU time are per run."""

    per_second: float
    transactions: float
    worker: float
    beat: float
    postgres: float
    memory: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--noops", type=int, default=3_000, metavar="N",
                        help="runs that wait for one worker")  # fmt: skip
    parser.add_argument("--concurrency", type=int, default=4, metavar="N",
                        help="children of each worker")  # fmt: skip


def measure(testbed: Testbed) -> Table:
    columns = len(CASES)
    rows = [
        row("runs per second", columns, ""),
        row("transactions for each run", columns, ""),
        row("CPU time of the worker for each", columns, "ms"),
        row("CPU time of beat for each", columns, "ms"),
        row("CPU time of Postgres for each", columns, "ms"),
        row("memory of the worker, its children included", columns, "MB"),
    ]
    rows[0].targets = (Target(times=3, column=1), Target(times=1, column=2))
    for column, case in enumerate(CASES):
        for _ in range(testbed.options.runs if column == 0 else testbed.options.peer_runs):
            _note(rows, column, _once(testbed, case))
    title = (
        f"{testbed.options.noops:,} no-op runs, one worker with {testbed.options.concurrency} "
        "children"
    )
    return Table(title, [case.name for case in CASES], rows)


def _note(rows: list[Row], column: int, done: Done) -> None:
    for line, value in zip(rows, done, strict=True):
        line.samples[column].values.append(value)


def _once(testbed: Testbed, case: Case) -> Done:
    count = testbed.options.noops
    testbed.clear()
    with Evidence() as evidence, ExitStack() as stack:
        env = {"BENCH_EVIDENCE": evidence.path}
        if case.results:
            _send(count)
            env["BENCH_RESULTS"] = case.results.replace("redis", testbed.env["REDIS_URL"])
        else:
            _enqueue(count)
        testbed.settle()
        working = stack.enter_context(
            worker(case.app, testbed, concurrency=testbed.options.concurrency, **env)
        )
        beating = None if case.results else stack.enter_context(beat(TRUEBEAT, testbed))
        done = _watch(testbed, evidence, working, beating, count)
        _check_results(testbed, case, count)
    print(f"  {case.name}: {done.per_second:,.0f}/s, {done.transactions:.2f} transactions, "
          f"worker {done.worker:.2f} ms, Postgres {done.postgres:.2f} ms each, {load()}",
          flush=True)  # fmt: skip
    return done


def _enqueue(count: int) -> None:
    from scheduling.jobs import Call, enqueue_many

    enqueue_many(JOB, (Call((float(number),)) for number in range(count)))


def _send(count: int) -> None:
    from bench.plain.app import app

    with app.producer_or_acquire() as producer:
        for number in range(count):
            app.send_task(JOB, (float(number),), producer=producer)


def _watch(
    testbed: Testbed, evidence: Evidence, working: Process, beating: Process | None, count: int
) -> Done:
    limit = 30 + count / 50
    _until(working, lambda: evidence.count() >= count / 100, limit)
    first, began = evidence.count(), time.monotonic()
    before, transactions = working.cpu(), int(testbed.value(TRANSACTIONS))
    of_beat = beating.cpu().own if beating else 0.0
    _until(working, lambda: evidence.count() >= count, limit)
    runs, seconds = count - first, time.monotonic() - began
    cpu = working.cpu().since(before)
    of_beat = (beating.cpu().own if beating else 0.0) - of_beat
    memory = working.memory()
    time.sleep(1.5)  # sessions tell the statistics once a second
    transactions = int(testbed.value(TRANSACTIONS)) - transactions
    worker, beat, postgres = (each * 1000 / runs for each in (cpu.own, of_beat, cpu.postgres))
    return Done(runs / seconds, transactions / runs, worker, beat, postgres, memory)


def _until(process: Process, true: Callable[[], bool], limit: float) -> None:
    if not process.wait_until(true, limit, step=0.02):
        raise BenchError(f"{process.name} was not done after {limit:.0f} s.")


def _check_results(testbed: Testbed, case: Case, count: int) -> None:
    if case.results == "redis":
        found = sum(1 for _ in testbed.redis.scan_iter("celery-task-meta-*", count=1000))
    else:
        found = int(testbed.value("SELECT count(*) FROM django_celery_results_taskresult"))
    if found != count:
        raise BenchError(f"{case.name} kept {found:,} results of {count:,} runs.")
