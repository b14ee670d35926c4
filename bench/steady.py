"""steady: schedules due evenly, one after the other; how late each message is in Redis.

Truebeat is measured with few stored and with many, at the same rate; the peers with few, at a tenth
of it, as they cannot do more.
"""

import argparse
import time

from bench.peers import DATABASE_SCHEDULER, REDBEAT, TRUEBEAT, Peer
from bench.report import Sample, Table, load, row
from bench.streams import Lateness, Watched, expected, lateness, streaming, told, watch
from bench.testbed import Testbed

SIZES = [200_000, 10_000]
GRACE = 5  # seconds after the stream's end; later messages count as missed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=10,
                        help="how long a stream is watched")  # fmt: skip
    parser.add_argument("--rate", type=int, default=1000, metavar="N",
                        help="schedules due each second, for Truebeat")  # fmt: skip
    parser.add_argument("--peer-stored", type=int, default=10_000, metavar="N",
                        help="schedules stored, for its peers")  # fmt: skip
    parser.add_argument("--peer-rate", type=int, default=100, metavar="N",
                        help="schedules due each second, for its peers")  # fmt: skip


def measure(testbed: Testbed) -> Table:
    options = testbed.options
    cases = [(TRUEBEAT, size, options.rate) for size in options.stored or SIZES]
    cases += [(peer, options.peer_stored, options.peer_rate)
              for peer in (DATABASE_SCHEDULER, REDBEAT) if peer.runs(testbed)]  # fmt: skip
    rows = [
        row("lateness, p50", len(cases), "ms", most=50),
        row("lateness, p99", len(cases), "ms", most=150),
        row("lateness, worst", len(cases), "ms"),
        row("missed", len(cases), "%", most=0, compared=False),
        row("doubled", len(cases), "", most=0, compared=False),
        row("CPU of beat, of a core", len(cases), "", most=0.5),
        row("CPU of Postgres, of a core", len(cases), ""),
        row("memory of beat, at its highest", len(cases), "MB", most=150),
    ]
    for column, (peer, size, rate) in enumerate(cases):
        late, watched = _once(testbed, peer, size, rate)
        _note([row.samples[column] for row in rows], late, watched)
    title = f"A steady stream, for {options.seconds:g} s: from due to in Redis"
    names = [f"{peer.name}, {size:,} stored, {rate:,}/s" for peer, size, rate in cases]
    return Table(title, names, rows)


def _note(samples: list[Sample], late: Lateness, watched: Watched) -> None:
    missed = 100 * late.missed / late.expected if late.expected else 0.0
    figures = (late.p50, late.p99, late.worst, missed, late.doubled, *watched.cpu, watched.memory)
    for sample, value in zip(samples, figures, strict=True):
        sample.values += [] if value is None else [value]


def _once(testbed: Testbed, peer: Peer, size: int, rate: int) -> tuple[Lateness, Watched]:
    with streaming(testbed, peer, size, rate) as stream:
        watched = watch(testbed, stream, testbed.options.seconds)
        time.sleep(GRACE)
        arrivals = stream.taker.arrivals(stream.stock)
    due = expected(stream.stock, rate, watched)
    late = lateness(arrivals, watched.since, watched.until, due)
    print(f"  {peer.name}, {size:,} stored, {rate:,}/s: {told(late)}, {watched.memory:.0f} MB, "
          f"{load()}", flush=True)  # fmt: skip
    return late, watched
