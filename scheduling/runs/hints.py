"""Hints: the Celery messages in Redis that say a run may start.

A hint holds the task's name, the run's id, the attempt, the time limits and a signature over these,
but no arguments. Hints of a task differ in ids and signatures alone. So Celery's and kombu's own
code builds one of them, which keeps the format theirs, and the others are copies with other ids:
over 100,000 a second, while `apply_async` makes 1,000 (docs/benchmarks.md).
"""

import logging
import math
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple
from uuid import UUID

import redis
from celery import current_app
from kombu.serialization import dumps as serialize
from kombu.utils.json import dumps
from redis.exceptions import NoPermissionError

from scheduling import celery_internals
from scheduling.broker import clients, sharing
from scheduling.broker.names import names
from scheduling.broker.signing import ATTEMPT, LEDGER, SIGNATURE, TASK, signer
from scheduling.errors import EnqueueError
from scheduling.logs import event
from scheduling.postgres.identity import ledger_id
from scheduling.runs.message_options import LONGEST, read_options

logger = logging.getLogger(__name__)

# The placeholders of a template for a hint's id, attempt, delivery tag, ledger and signature.
ID, TAG, TRY = "00000000-0000-7000-8000-00000000a11d", "truebeat-delivery-tag", 7_202_415_906
WHOSE, SIGNED = "truebeat-ledger", "truebeat-signature"
SLOTS = re.compile(f"{TAG}|{TRY}|{WHOSE}")
ALL_BUT_ID = itemgetter(slice(1, None))
NO_RUN = UUID(int=0)
LOG_EVERY = 60.0  # seconds between two log lines about a lane that cannot be used
UNUSABLE = sys.maxsize  # the length of a lane whose key is not a list
PROBE = "scheduling.probe"  # a key that never exists
PIECE = 2000  # messages that are in memory at once while a whole lane is read
RUN_ID = re.compile(rb'"id": ?"([0-9a-f-]{36})"')


class Lane(NamedTuple):
    """One of Redis's lists: the hints of one queue at one priority."""

    queue: str
    priority: int


class Hint(NamedTuple):
    """A run that may start; `options` is its JSON text, which may hold time limits."""

    id: UUID | str
    attempt: int
    task: str
    queue: str
    priority: int
    options: str


class Broker:
    """Beat's own connection to Redis: pushes hints, counts them, and looks which are there."""

    def __init__(self, socket_timeout: float = 5, socket_connect_timeout: float = 2) -> None:
        self._redis = clients.client(
            socket_timeout=socket_timeout, socket_connect_timeout=socket_connect_timeout
        )
        # Hints whose push failed or got no answer: some of them may have arrived.
        self.unsure = set[Hint]()
        self.unusable: dict[
            Lane, str
        ] = {}  # lanes that beat cannot use, with the reason, until beat reports them
        self._logged_at: dict[Lane, float] = {}
        self.searches: dict[Lane, Any] = {}  # of lost hints, in lanes that are very long

    def rehearse(self, lane: Lane) -> None:
        """Connect, and make a message without a run, so that the first push does not wait."""
        self.probe()
        message(Hint(ID, 1, "scheduling.tasks.prune", *lane, "{}"))

    def probe(self) -> None:
        """Raise the error of Redis if it is away, or takes no writes."""
        self.lengths(())

    def sign_in(self) -> list[str]:
        """Note that a beat of this ledger is there; return the ids of others in this Redis."""
        return sharing.sign_in(self._redis, names().key_of(sharing.LEDGERS), ledger_id())

    def lengths(self, lanes: Iterable[Lane]) -> dict[Lane, int]:
        """Return how many messages lie in each lane, plain messages of other programs included.

        Fails if Redis answers but takes no writes (READONLY, OOM, MISCONF, ...), because no hint
        could be pushed then.
        """
        taken = {lane: use for lane in lanes if (use := names().why_taken(lane.queue))}
        for lane, use in taken.items():
            self._log_unusable(lane, f"the broker uses this name itself, for {use}")
        lanes = [lane for lane in lanes if lane not in taken]
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.setrange(names().key_of(PROBE), 0, b"")  # a write that stores nothing
        for lane in lanes:
            pipeline.llen(list_key(lane))
        written, *found = pipeline.execute(raise_on_error=False)
        if isinstance(written, Exception) and not isinstance(written, NoPermissionError):
            raise written
        lengths = dict.fromkeys(taken, UNUSABLE)
        for lane, length in zip(lanes, found, strict=True):
            lengths[lane] = self._length(lane, length)
        return lengths

    def _length(self, lane: Lane, found: Any) -> int:
        """Return a list's length; a key of another kind has no room, and stops no other lane."""
        if isinstance(found, redis.ResponseError):
            self._log_unusable(lane, str(found))
            return UNUSABLE
        if isinstance(found, Exception):
            raise found
        return int(found)

    def _log_unusable(self, lane: Lane, why: str) -> None:
        now = time.monotonic()
        if now - self._logged_at.get(lane, -math.inf) > LOG_EVERY:
            self._logged_at[lane] = now
            self.unusable[lane] = why
            event(logger, "lane_unusable", level=logging.ERROR, queue=lane.queue, error=why)

    def push(self, hints: Iterable[Hint]) -> int:
        """Push hints to the tails of their lanes, in order; return how many."""
        hints = list(hints)
        lanes = defaultdict[Lane, list[bytes]](list)
        for alike, some in groupby(hints, key=ALL_BUT_ID):
            _, _, queue, priority, _ = alike
            lanes[Lane(queue, priority)] += _messages([str(hint.id) for hint in some], *alike)
        pipeline = self._redis.pipeline(transaction=False)
        for lane, messages in lanes.items():
            pipeline.lpush(list_key(lane), *messages)
        try:
            pipeline.execute()
        except (redis.RedisError, OSError):
            self.unsure.update(hints)
            raise
        return len(hints)

    def ids_in(self, lane: Lane) -> set[UUID]:
        """Return the ids of all messages that lie in a lane.

        It is read in pieces from its head, where new ones are pushed: so no message that stays in
        the lane is missed.
        """
        found, first = set[UUID](), 0
        while ids := self.ids_from(lane, first):
            found.update(ids)
            first += PIECE
        return found - {NO_RUN}

    def ids_from(self, lane: Lane, first: int) -> list[UUID]:
        """Return the ids of PIECE messages of a lane, from the `first` on; fewer at its end."""
        payloads: Any = self._redis.lrange(list_key(lane), first, first + PIECE - 1)
        return list(_ids(payloads))


def _ids(payloads: Iterable[bytes]) -> Iterator[UUID]:
    """Yield an id for each message; or NO_RUN."""
    for payload in payloads:
        found = RUN_ID.search(payload)
        yield UUID(found[1].decode()) if found else NO_RUN


def message(hint: Hint) -> bytes:
    """Return the hint as kombu's Redis transport would store it."""
    (made,) = _messages([str(hint.id)], *hint[1:])
    return made


def _messages(
    run_ids: Sequence[str], attempt: int, task: str, queue: str, priority: int, options: str
) -> list[bytes]:
    """Return the messages of hints that differ in their ids alone, in order."""
    limits, ledger = _time_limits(options), ledger_id()
    # A hint that is sent again is another message: its tag must be its own.
    slots = {TAG: f"{ID}.{time.time_ns()}", str(TRY): attempt, WHOSE: ledger}
    text = (_template(task, queue, priority, *limits) % slots).encode()
    before, after = text.split(SIGNED.encode())
    head, tail = before.split(ID.encode()), after.split(ID.encode())
    sign = signer(ledger, queue, attempt, task, list(limits))
    ids = [run_id.encode() for run_id in run_ids]
    return [run_id.join(head) + sign(run_id) + run_id.join(tail) for run_id in ids]


@lru_cache(maxsize=4096)
def _time_limits(options: str) -> tuple[float | None, float | None]:
    """Return the hard and the soft limit, in seconds; None for a missing or invalid limit.

    Raw SQL can write any options. One odd row must not stop its batch; its claim reports it.
    """
    if options == "{}":
        return None, None
    try:
        known = read_options(options)
    except EnqueueError:
        return None, None
    return _seconds(known.get("time_limit")), _seconds(known.get("soft_time_limit"))


def _seconds(value: object) -> float | None:
    """Return a time limit that a worker's timers can count down, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 < value < LONGEST.total_seconds() else None


@lru_cache(maxsize=1024)
def _template(
    task: str, queue: str, priority: int, time_limit: float | None, soft_time_limit: float | None
) -> str:
    """Return a message's text with slots for Python's `%`."""
    amqp: Any = current_app.amqp
    celery_message = amqp.as_task_v2(
        ID, task, time_limit=time_limit, soft_time_limit=soft_time_limit
    )
    headers = {TASK: celery_message.headers.pop("task"), **celery_message.headers}
    # A worker reads a missing header as None, and a shorter hint is pushed sooner.
    headers = {name: value for name, value in headers.items() if value is not None}
    content_type, content_encoding, body = serialize(celery_message.body, serializer="json")
    channel: Any = names()  # knows how a message looks, and needs no connection
    text = channel.prepare_message(
        body,
        priority,
        content_type,
        content_encoding,
        {**headers, ATTEMPT: TRY, LEDGER: WHOSE, SIGNATURE: SIGNED},
        {**celery_message.properties, "delivery_mode": 2},
    )
    celery_internals.address(channel, text, queue)
    text["properties"]["delivery_tag"] = TAG
    return SLOTS.sub(r"%(\g<0>)s", dumps(text).replace("%", "%%"))


def list_key(lane: Lane) -> str:
    """Return the Redis key of a lane, as kombu's transport forms it."""
    return names().list_of(*lane)
