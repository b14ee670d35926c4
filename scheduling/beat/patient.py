"""Beat's access to Redis, which never keeps beat waiting: due runs get their rows meanwhile.

Redis may be frozen, or the network may drop every packet: a call then takes its whole time-out. So
the time-outs are short, and after a call that failed beat asks Redis for nothing until a probe in
the background has succeeded. The probe also reconnects: a name server may be slow to answer.
"""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event, Thread

import redis
from kombu.exceptions import OperationalError as BrokerError

from scheduling.broker.doorbell import Listener
from scheduling.logs import event
from scheduling.runs.hints import Broker

logger = logging.getLogger(__name__)

PATIENCE = 0.5  # seconds for which beat waits for an answer of Redis
PAUSE_MIN, PAUSE_MAX = 0.25, 5.0  # seconds between two probes of a Redis that is away
LISTEN = 1.0  # seconds of one wait for a ring

REDIS_AWAY = (redis.RedisError, BrokerError, OSError)


class PatientBroker(Broker):
    """A broker whose calls wait at most PATIENCE seconds for an answer, then raise REDIS_AWAY."""

    def __init__(self) -> None:
        super().__init__(socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="probe")
        self._probe: Future[None] | None = None
        self._probe_at = 0.0
        self._pause = 0.0
        self._away = False

    def is_there(self) -> bool:
        """Return whether the last call succeeded; if not, start a probe. Never waits."""
        if self._away and self._probe is not None and self._probe.done():
            error, self._probe = self._probe.exception(), None
            if error is None:
                self._away, self._pause = False, 0.0
            else:
                self.missed(error)
        if self._away and self._probe is None and time.monotonic() >= self._probe_at:
            self._probe = self._thread.submit(self.probe)
        return not self._away

    def missed(self, error: BaseException) -> None:
        """Note that Redis has not answered, or has answered an error."""
        self._away = True
        self._pause = min(max(self._pause * 2, PAUSE_MIN), PAUSE_MAX)
        self._probe_at = time.monotonic() + self._pause
        event(logger, "redis_away", level=logging.ERROR, error=error, pause=self._pause)


class Bell:
    """Listens for rings in a thread of its own, as Redis may keep it waiting."""

    def __init__(self) -> None:
        self._rung = Event()
        self._said = SimpleQueue[float | None]()
        self._thread: Thread | None = None
        self._closed = Event()

    def wait(self, seconds: float) -> Sequence[float | None]:
        """Wait for the next ring, or for `seconds`; return the values of all rings since then."""
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
    """Set `rung` at each ring and pass on its value, until the owner is closed."""
    listener = Listener()
    while not closed.is_set():
        if rings := listener.wait(LISTEN):
            for ring in rings:
                said.put(ring)
            rung.set()
    listener.close()
