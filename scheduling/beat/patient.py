"""Beat's way to Redis, for which it never waits long: what is due gets its row meanwhile.

A Redis may be frozen, or a network may swallow everything: then each call would take its whole
time-out. So calls are made in threads. One that does not end soon is left to itself, and until a
probe in the background has gone through, nothing more is asked.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event, Thread
from typing import TypeVar
from uuid import UUID

import redis
from kombu.exceptions import OperationalError as BrokerError

from scheduling.broker.doorbell import Listener
from scheduling.logs import event
from scheduling.postgres.identity import ledger_id
from scheduling.runs.hints import Broker, Hint, Lane

logger = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE = 0.5  # seconds for which beat waits for an answer of Redis
PAUSE_MIN, PAUSE_MAX = 0.25, 5.0  # seconds between two probes of a Redis that is away
LISTEN = 1.0  # seconds of one wait for a ring

REDIS_AWAY = (redis.RedisError, BrokerError, OSError)


class PatientBroker(Broker):
    """A broker that raises one of REDIS_AWAY in PATIENCE seconds at the latest."""

    def __init__(self) -> None:
        super().__init__()
        # Pushes go on beside other calls.
        self._threads = ThreadPoolExecutor(max_workers=3, thread_name_prefix="redis")
        self._probe: Future[None] | None = None
        self._probe_at = 0.0
        self._pause = 0.0
        self._away = False

    def is_there(self) -> bool:
        """Whether Redis has taken what it was last asked for; probe it, if not, in the background.

        Never waits.
        """
        if self._away and self._probe is not None and self._probe.done():
            error, self._probe = self._probe.exception(), None
            if error is None:
                self._away, self._pause = False, 0.0
            else:
                self.missed(error)
        if self._away and self._probe is None and time.monotonic() >= self._probe_at:
            self._probe = self._threads.submit(super().probe)
        return not self._away

    def missed(self, error: BaseException) -> None:
        """Note that Redis has not answered, or has answered an error."""
        self._away = True
        self._pause = min(max(self._pause * 2, PAUSE_MIN), PAUSE_MAX)
        self._probe_at = time.monotonic() + self._pause
        event(logger, "redis_away", level=logging.ERROR, error=error, pause=self._pause)

    def probe(self) -> None:
        self._soon(super().probe)

    def sign_in(self) -> list[str]:
        ledger_id()  # asks the ledger on this thread's connection, if it must
        return self._soon(super().sign_in)

    def lengths(self, lanes: Iterable[Lane]) -> dict[Lane, int]:
        return self._soon(lambda: super(PatientBroker, self).lengths(lanes))

    def push(self, hints: Iterable[Hint]) -> int:
        hints = list(hints)
        try:
            return self._soon(lambda: super(PatientBroker, self).push(hints))
        except redis.TimeoutError:
            self.unsure.update(hints)  # it may arrive yet
            raise

    def ids_from(self, lane: Lane, first: int) -> list[UUID]:
        return self._soon(lambda: super(PatientBroker, self).ids_from(lane, first))

    def _soon(self, act: Callable[[], T]) -> T:
        call = self._threads.submit(act)
        try:
            return call.result(PATIENCE)
        except TimeoutError:
            if call.done():
                raise
        raise redis.TimeoutError(f"Redis has not answered for {PATIENCE:g} s")


class Bell:
    """Beat's ear, in a thread of its own: Redis may keep that waiting."""

    def __init__(self) -> None:
        self._rung = Event()
        self._said = SimpleQueue[float | None]()
        self._thread: Thread | None = None
        self._closed = Event()

    def wait(self, seconds: float) -> Sequence[float | None]:
        """Return at the next ring, or after `seconds`: what the rings said that came together."""
        if self._thread is None:
            arguments = (self._rung, self._said, self._closed)
            self._thread = Thread(target=_listen, args=arguments, name="bell", daemon=True)
            self._thread.start()
        self._rung.wait(max(seconds, 0.0))
        self._rung.clear()
        return [self._said.get_nowait() for _ in range(self._said.qsize())]  # its only reader

    def close(self) -> None:
        self._closed.set()

    __del__ = close


def _listen(rung: Event, said: "SimpleQueue[float | None]", closed: Event) -> None:
    """Set `rung` at each ring, and pass on what it said, until its owner is gone."""
    listener = Listener()
    while not closed.is_set():
        if rings := listener.wait(LISTEN):
            for ring in rings:
                said.put(ring)
            rung.set()
    listener.close()
