"""beats: one herd with one beat and with three, which share it without a leader."""

import argparse
import os

from bench.herd import note, once
from bench.peers import TRUEBEAT
from bench.report import Row, Table, Target, row
from bench.testbed import Testbed

MANY = 3
ENOUGH_CORES = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shared-herd", type=int, nargs="+", metavar="N",
                        default=[10_000, 100_000],
                        help="schedules due at once, for one beat and for three")  # fmt: skip


def measure(testbed: Testbed) -> Table:
    rows = [row for size in testbed.options.shared_herd for row in _rows(testbed, size)]
    cores = os.cpu_count() or 1
    title = f"One herd, one beat and {MANY} beats, on {cores} cores"
    return Table(title, [f"{MANY} beats", "one beat"], rows)


def _rows(testbed: Testbed, size: int) -> list[Row]:
    what = f"{size:,} due at once: "
    rows = [
        row(what + "all in Redis", 2),
        row(what + "the first one", 2),
        row(what + "CPU time of the beats", 2),
        row(what + "CPU time of Postgres for it", 2),
    ]
    if (os.cpu_count() or 1) >= ENOUGH_CORES:
        rows[0].targets = (Target(faster=2),)
    for _ in range(testbed.options.runs):
        for column, beats in enumerate((MANY, 1)):
            herd = once(testbed, TRUEBEAT, size, beats)
            note([row.samples[column] for row in rows], herd, testbed, TRUEBEAT)
    return rows
