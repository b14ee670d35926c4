"""The bell that ends beat's sleep, a Redis pub/sub channel; a lost ring costs a second.

A ring says how long its run has been invisible, as in a long transaction. If an old snapshot makes
beat look at new rows only, beat looks back that far.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import redis
from django.db import connection, transaction

from scheduling.broker import clients
from scheduling.broker.names import names
from scheduling.logs import event

logger = logging.getLogger(__name__)

CHANNEL = "scheduling.bell"
SILENCE = 5.0  # seconds without a ring after Redis has not answered one
_silent_until = 0.0
LONGEST = 1e9  # seconds
NO_WAIT = 0.25  # seconds: beat looks back so far anyway


@cache
def _client() -> "redis.Redis":
    # A web request that enqueues must not hang on a Redis that is away.
    return clients.client(socket_timeout=1)


def ring(waited: float | None = 0.0) -> None:
    """Wake beat now. Never raises: beat looks by itself within a second.

    While Redis does not answer, only one ring in SILENCE seconds waits for that.

    Args:
        waited: seconds for which a run might have started already; None: unknown.
    """
    global _silent_until
    if time.monotonic() < _silent_until:
        return
    words = b"?" if waited is None else b"%.3f" % waited if waited > 0 else b""
    try:
        _client().publish(names().channel_of(CHANNEL), words)
    except (redis.RedisError, OSError) as error:
        if isinstance(error, redis.TimeoutError | TimeoutError):
            _silent_until = time.monotonic() + SILENCE
        event(logger, "bell_not_rung", level=logging.WARNING, error=error)


class Ring:
    """A ring for the commit of a transaction: until then its rows are invisible."""

    def __init__(self, waited: float | None) -> None:
        self._begun = time.monotonic()
        self._waited = waited

    def __call__(self) -> None:
        if self._waited is None:
            ring(None)
        elif (waited := self._waited + self._age()) > NO_WAIT:
            ring(waited)
        else:
            ring()

    def also(self, waited: float | None) -> None:
        """Say the longer of two waits."""
        if waited is None or self._waited is None:
            self._waited = None
        else:
            self._waited = max(self._waited, waited - self._age())

    def _age(self) -> float:
        return time.monotonic() - self._begun


def ring_on_commit(waited: float | None = 0.0) -> None:
    """Wake beat when the caller's transaction commits, once however often this is called.

    Args:
        waited: seconds for which a run might have started already; None: unknown.
    """
    callbacks: list[Any] = connection.run_on_commit
    if callbacks and isinstance(callbacks[-1][1], Ring):
        callbacks[-1][1].also(waited)
        return
    transaction.on_commit(Ring(waited))


class Listener:
    """Beat's ear. While Redis is away it is only a clock."""

    def __init__(self) -> None:
        self._pubsub: Any = None

    def wait(self, seconds: float) -> Sequence[float | None]:
        """Return at the next ring, or after `seconds`.

        Returns:
            For each ring that came, the seconds that its run had waited, or None if unknown.
            Empty if no ring came.
        """
        until = time.monotonic() + max(seconds, 0.0)
        try:
            if self._pubsub is None:
                self._pubsub = self._subscribe()
            while (ring := self._next(until - time.monotonic())) is None:
                if time.monotonic() >= until:
                    return ()
            rings = [_said(ring)]
            while (ring := self._next(0)) is not None:
                rings.append(_said(ring))
            return rings
        except (redis.RedisError, OSError) as error:
            event(logger, "bell_not_heard", level=logging.WARNING, error=error)
            self.close()
            time.sleep(max(until - time.monotonic(), 0.0))
            return ()

    def _next(self, seconds: float) -> Any:
        return self._pubsub.get_message(timeout=max(seconds, 0.0))

    def _subscribe(self) -> Any:
        client = clients.client(socket_timeout=5)
        pubsub = client.pubsub(ignore_subscribe_messages=False)  # type: ignore[no-untyped-call]
        pubsub.subscribe(names().channel_of(CHANNEL))
        pubsub.get_message(timeout=1)
        return pubsub

    def close(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            with suppress(redis.RedisError, OSError):
                pubsub.close()


def _said(ring: Mapping[str, Any]) -> float | None:
    try:
        seconds = float(ring["data"] or 0)
    except (TypeError, ValueError):  # anybody can write to Redis
        return None
    return seconds if 0 <= seconds <= LONGEST else None
