"""herd: many schedules due in the same instant, until their last message is in Redis.

Time counts from the due instant, by Postgres's clock. Every peer gets the same schedules, and time
to read them before that instant; Truebeat's are planned already.
"""

import argparse
import math
import time
from contextlib import ExitStack
from typing import NamedTuple

from bench.peers import DATABASE_SCHEDULER, REDBEAT, TRUEBEAT, Peer, beat
from bench.processes import Cpu, Process
from bench.report import Row, Sample, Table, load, row
from bench.schedules import Stock, store
from bench.testbed import Testbed

PEERS = (TRUEBEAT, DATABASE_SCHEDULER, REDBEAT)
ALL_THERE = {10_000: 0.8, 100_000: 5.0}  # the targets, in seconds
READ_PER_SECOND = 1000  # schedules that DatabaseScheduler reads, to give it enough time


class Herd(NamedTuple):
    """One run: seconds from the due instant to the first and to the last message."""

    first: float | None
    last: float | None
    there: int
    cpu: Cpu


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--herd", type=int, nargs="+", default=[10_000], metavar="N",
                        help="schedules due at once; several sizes may be given")  # fmt: skip
    parser.add_argument("--lead", type=float, default=6, metavar="SECONDS",
                        help="a beat's time before a herd or stream; a peer has more")  # fmt: skip


def measure(testbed: Testbed) -> Table:
    rows = [row for size in testbed.options.herd for row in _rows(testbed, size)]
    title = "A herd: schedules due in the same instant (from that instant)"
    return Table(title, [peer.name for peer in PEERS], rows)


def _rows(testbed: Testbed, size: int) -> list[Row]:
    what, columns = f"{size:,} due at once: ", len(PEERS)
    rows = [
        row(what + "all in Redis", columns, most=ALL_THERE.get(size)),
        row(what + "the first one", columns, most=0.2),
        row(what + "CPU time of beat", columns),
        row(what + "CPU time of Postgres for it", columns),
    ]
    for column, peer in enumerate(PEERS):
        for _ in range(peer.runs(testbed)):
            note([row.samples[column] for row in rows], once(testbed, peer, size), testbed, peer)
    return rows


def note(samples: list[Sample], herd: Herd, testbed: Testbed, peer: Peer) -> None:
    """Add a herd to the samples of: last, first, CPU of beat, CPU of Postgres."""
    last, first, *cpu = samples
    there = f"{herd.there:,}"
    if herd.first is not None:
        first.values.append(herd.first)
    last.values.append(peer.limit(testbed) if herd.last is None else herd.last)
    if herd.last is None:
        last.gave_up.append(f"{there} there")
    for sample, seconds in zip(cpu, herd.cpu, strict=False):
        if herd.last is None:
            sample.gave_up.append(f"{seconds:.2f} s for {there}")
        else:
            sample.values.append(seconds)


def once(testbed: Testbed, peer: Peer, size: int, beats: int = 1) -> Herd:
    """Measure one herd, with so many beats at once."""
    window = max(10_000, 2 * size)
    lead = testbed.options.lead + (0 if peer.own else size / READ_PER_SECOND)
    loading = 2 + size / 20_000
    due = math.ceil(testbed.now() + lead + loading)  # redbeat counts in whole seconds
    store(testbed, peer, Stock(size, every=3600, due=due))
    if testbed.now() > due - lead:
        print(f"  (loading took {loading:.0f} s too long: {peer.name} had less than its lead)")
    with testbed.without_triggers(off=not peer.own), ExitStack() as stack:
        started = [
            stack.enter_context(beat(peer, testbed, QUEUE_WINDOW=window)) for _ in range(beats)
        ]
        time.sleep(max(due - 0.2 - testbed.now(), 0))
        herd = _watch(testbed, started, due, size, peer.limit(testbed))
    told = f"first {_seconds(herd.first)}, last {_seconds(herd.last)}, {herd.there:,} there"
    many = f"{beats} beats, " if beats > 1 else ""
    print(f"  {peer.name}, {many}{size:,}: {told}, QUEUE_WINDOW {window:,}, {load()}", flush=True)
    return herd


def _watch(testbed: Testbed, beats: list[Process], due: float, size: int, limit: float) -> Herd:
    seen: dict[str, float] = {}
    there = 0

    def all_there() -> bool:
        nonlocal there
        there = testbed.hints()
        if there:
            seen.setdefault("first", testbed.now() - due)
        return there >= size

    before = [process.cpu() for process in beats]
    if beats[0].wait_until(all_there, limit + 0.2, step=0.005):
        seen["last"] = testbed.now() - due
    spent = [process.cpu().since(b) for process, b in zip(beats, before, strict=True)]
    cpu = Cpu(sum(one.own for one in spent), spent[0].postgres)
    return Herd(seen.get("first"), seen.get("last"), there, cpu)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} s"
