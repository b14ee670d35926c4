"""edit: schedules that are due in 2 seconds are created during a stream.

Are they on time, and does the stream notice? The first half of the time has no edits. In
the second half, one schedule is saved through the ORM every quarter of a second.
"""

import argparse
import time
from datetime import UTC, datetime

from bench.peers import DATABASE_SCHEDULER, TRUEBEAT, Peer
from bench.report import Sample, Table, load, row
from bench.schedules import TASK
from bench.steady import GRACE
from bench.streams import Arrival, Lateness, expected, lateness, streaming, told, watch
from bench.testbed import Testbed

SIZE = 200_000
AHEAD = 2.0  # seconds from the edit to its instant
EVERY = 0.25  # seconds between edits
FIRST_NUMBER = 1_000_000_000  # the first number of edited schedules; the stream's are smaller


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options are those of the steady stream."""


def measure(testbed: Testbed) -> Table:
    options = testbed.options
    cases = [(TRUEBEAT, max(options.stored or [SIZE]), options.rate)]
    if DATABASE_SCHEDULER.runs(testbed):
        cases.append((DATABASE_SCHEDULER, options.peer_stored, options.peer_rate))
    rows = [
        row("a schedule created due in 2 s: lateness, p50", len(cases), "ms", most=50),
        row("a schedule created due in 2 s: lateness, worst", len(cases), "ms", most=150),
        row("created, but not there in time", len(cases), "", most=0, compared=False),
        row("the stream without edits: p50", len(cases), "ms", most=50),
        row("the stream with edits: p50", len(cases), "ms", most=50),
        row("the stream without edits: p99", len(cases), "ms", most=150),
        row("the stream with edits: p99", len(cases), "ms", most=150),
    ]
    for column, (peer, size, rate) in enumerate(cases):
        _once(testbed, peer, size, rate, [row.samples[column] for row in rows])
    names = [f"{peer.name}, {size:,} stored, {rate:,}/s" for peer, size, rate in cases]
    return Table("Edits beside a stream", names, rows)


def _once(testbed: Testbed, peer: Peer, size: int, rate: int, samples: list[Sample]) -> None:
    seconds = testbed.options.seconds / 2
    with streaming(testbed, peer, size, rate) as stream:
        quiet = watch(testbed, stream, seconds)
        edited = _edit_for(testbed, seconds)
        busy = quiet._replace(since=quiet.until, until=testbed.now())
        time.sleep(AHEAD + GRACE)
        arrivals = stream.taker.arrivals(stream.stock)
    of_stream = [arrival for arrival in arrivals if arrival.number < FIRST_NUMBER]
    halves = [
        lateness(of_stream, half.since, half.until, expected(stream.stock, rate, half))
        for half in (quiet, busy)
    ]
    came = {arrival.number: arrival for arrival in arrivals if arrival.number >= FIRST_NUMBER}
    late = _lateness_of_edits(edited, came)
    figures = [
        late.p50,
        late.worst,
        late.missed,
        *(h.p50 for h in halves),
        *(h.p99 for h in halves),
    ]
    for sample, value in zip(samples, figures, strict=True):
        sample.values += [] if value is None else [value]
    print(f"  {peer.name}: edits {told(late)}; stream without {told(halves[0])}; "
          f"with {told(halves[1])}, {load()}", flush=True)  # fmt: skip


def _edit_for(testbed: Testbed, seconds: float) -> dict[int, float]:
    """Create schedules for so long; return the numbers and instants of those."""
    from django_celery_beat.models import ClockedSchedule, PeriodicTask

    edited: dict[int, float] = {}
    until = testbed.now() + seconds
    while testbed.now() < until:
        number, due = FIRST_NUMBER + len(edited), testbed.now() + AHEAD
        rule = ClockedSchedule.objects.create(clocked_time=datetime.fromtimestamp(due, UTC))
        PeriodicTask.objects.create(
            name=f"edited {number}", task=TASK, args=f"[{number}]", clocked=rule, one_off=True
        )
        edited[number] = due
        time.sleep(EVERY)
    return edited


def _lateness_of_edits(edited: dict[int, float], came: dict[int, Arrival]) -> Lateness:
    there = [Arrival(number, edited[number], came[number].at) for number in came]
    return lateness(there, 0, float("inf"), len(edited))
