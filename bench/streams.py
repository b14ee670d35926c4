"""A stream: schedules due one after the other, evenly, for as long as a bench lasts.

Lateness is the time from the due instant of a schedule to the instant at which a worker could take
its message from Redis, by Postgres's clock. A stand-in for workers takes each
message at once; of Truebeat's runs it records that they have ended, many in one statement, so that
nothing looks lost. It does no job's work, which would need more cores than the beat.
"""

import base64
import json
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self
from uuid import UUID

import psycopg
import redis

from bench.peers import Peer, beat
from bench.processes import Cpu, Process
from bench.report import percentile
from bench.schedules import Stock, store
from bench.testbed import LANES, BenchError, Testbed

RUN_ID = re.compile(rb'"id": ?"([0-9a-f-]{36})"')

END = """
UPDATE scheduling_run SET state = 'succeeded', started_at = queued_at,
    finished_at = clock_timestamp()
 WHERE id = ANY(%s) AND state = 'queued'
"""
DUE = """
SELECT id, extract(epoch FROM due_at)::float, COALESCE((args::jsonb ->> 0)::integer, -1)
  FROM scheduling_run
"""


class Taker:
    """The stand-in for workers: takes messages as they come, and notes when."""

    def __init__(self, testbed: Testbed, peer: Peer) -> None:
        self.taken: list[tuple[float, bytes]] = []
        self._testbed, self._peer = testbed, peer
        self._ended = threading.Event()
        self._to_end: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._take, daemon=True)]
        if peer.own:
            self._threads.append(threading.Thread(target=self._end, daemon=True))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _take(self) -> None:
        with redis.Redis.from_url(self._testbed.env["REDIS_URL"]) as client:
            while not self._ended.is_set():
                first: Any = client.brpop(LANES, timeout=1)
                if first is None:
                    continue
                pipeline = client.pipeline(transaction=False)
                for lane in LANES:
                    pipeline.rpop(lane, 1000)
                at, more = self._testbed.now(), pipeline.execute()
                for message in [first[1], *(m for lane in more if lane for m in lane)]:
                    self.taken.append((at, message))
                    self._to_end.put(message)
        self._to_end.put(None)

    def _end(self) -> None:
        with psycopg.connect(self._testbed.env["DATABASE_URL"], autocommit=True) as ledger:
            message = self._to_end.get()
            while message is not None:
                ids = [_run_id(message)]
                time.sleep(0.1)
                while not self._to_end.empty() and (message := self._to_end.get()) is not None:
                    ids.append(_run_id(message))
                ledger.execute(END, [ids])
                if message is not None:
                    message = self._to_end.get()

    def arrivals(self, stock: Stock) -> "list[Arrival]":
        """Return the messages taken so far, with their due instants."""
        taken = list(self.taken)  # the runs of all these are in the ledger by now
        if not self._peer.own:
            numbered = ((at, _number(message)) for at, message in taken)
            return [Arrival(number, stock.due_of(number), at) for at, number in numbered]
        due = {row[0]: row[1:] for row in self._testbed.ledger.execute(DUE.encode()).fetchall()}
        known = ((at, due[_run_id(message)]) for at, message in taken)
        return [Arrival(number, instant, at) for at, (instant, number) in known]


class Arrival(NamedTuple):
    """A message: of which schedule, and when it was due and came, in seconds since 1970."""

    number: int
    due: float
    at: float


class Lateness(NamedTuple):
    """The lateness of the messages of some seconds, in milliseconds; None without messages.

    `missed`: so many of the `expected`, due in these seconds, had not come a while after them.
    """

    p50: float | None
    p99: float | None
    worst: float | None
    expected: int
    missed: int
    doubled: int


def lateness(arrivals: Iterable[Arrival], since: float, until: float, expected: int) -> Lateness:
    """Return the lateness of messages due from `since` to `until`, and the missed ones."""
    arrivals = list(arrivals)
    late = [
        (arrival.at - arrival.due) * 1000 for arrival in arrivals if since <= arrival.at < until
    ]
    due = Counter((a.number, a.due) for a in arrivals if since <= a.due < until)
    missed, doubled = max(expected - len(due), 0), due.total() - len(due)
    if not late:
        return Lateness(None, None, None, expected, missed, doubled)
    p50, p99 = percentile(late, 0.5), percentile(late, 0.99)
    return Lateness(p50, p99, max(late), expected, missed, doubled)


class Stream(NamedTuple):
    """A running beat in a stream: the stored schedules, the stand-in for workers, the beat."""

    stock: Stock
    taker: Taker
    beat: Process


@contextmanager
def streaming(testbed: Testbed, peer: Peer, size: int, rate: int) -> Iterator[Stream]:
    """Store `size` schedules of which `rate` are due each second; yield when they have begun to."""
    lead = testbed.options.lead + (0 if peer.own else size / 1000)
    loading = 2 + size / 10_000
    due = testbed.now() + loading + lead
    stock = Stock(size, every=max(size // rate, 1), due=due, step=1 / rate)
    store(testbed, peer, stock)
    if testbed.now() > due - lead:
        raise BenchError(f"loading {size:,} schedules took too long here: measure fewer, or later.")
    with testbed.without_triggers(off=not peer.own), Taker(testbed, peer) as taker:
        time.sleep(max(due - lead - testbed.now(), 0))
        with beat(peer, testbed) as process:
            time.sleep(max(due + 3 - testbed.now(), 0))  # its first batches are not the stream's
            yield Stream(stock, taker, process)


class Watched(NamedTuple):
    """Some seconds of a stream; `cpu` is per second, memory in megabytes at its highest."""

    since: float
    until: float
    cpu: Cpu
    memory: float


def watch(testbed: Testbed, stream: Stream, seconds: float) -> Watched:
    """Look on for so many seconds."""
    since, before, memory = testbed.now(), stream.beat.cpu(), 0.0
    while testbed.now() < since + seconds:
        time.sleep(min(1.0, max(since + seconds - testbed.now(), 0)))
        stream.beat.check()
        memory = max(memory, stream.beat.memory())
    until = testbed.now()
    spent = stream.beat.cpu().since(before)
    return Watched(since, until, Cpu(*(used / (until - since) for used in spent)), memory)


def expected(stock: Stock, rate: int, watched: Watched) -> int:
    """Return how many schedules were due in these seconds."""
    return int((watched.until - stock.due) * rate) - int((watched.since - stock.due) * rate)


def told(late: Lateness) -> str:
    """Return it in words."""
    figures = (late.p50, late.p99, late.worst)
    p50, p99, worst = ("-" if value is None else f"{value:.0f} ms" for value in figures)
    return (
        f"p50 {p50}, p99 {p99}, worst {worst}, {late.missed:,} of {late.expected:,} missed, "
        f"{late.doubled} doubled"
    )


def _run_id(message: bytes) -> UUID:
    found = RUN_ID.search(message)
    if found is None:
        raise ValueError(f"{message[:80]!r} is not a hint.")
    return UUID(found[1].decode())


def _number(message: bytes) -> int:
    arguments: Sequence[Any] = json.loads(base64.b64decode(json.loads(message)["body"]))[0]
    return int(arguments[0])
