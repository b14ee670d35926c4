"""The bell that ends beat's sleep: a Redis pub/sub channel. A lost ring costs a second, no more."""

import logging
import time
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
SILENCE = 5.0  # seconds for which nobody rings after Redis has not answered a ring
_silent_until = 0.0


@cache
def _client() -> "redis.Redis":
    # A web request that enqueues must not hang on a Redis that is away.
    return clients.client(socket_timeout=1)


def ring() -> None:
    """Wake beat now. Never raises: beat looks by itself within a second.

    While Redis does not answer, only one ring in SILENCE seconds waits for that.
    """
    global _silent_until
    if time.monotonic() < _silent_until:
        return
    try:
        _client().publish(names().channel_of(CHANNEL), b"")
    except (redis.RedisError, OSError) as error:
        if isinstance(error, redis.TimeoutError | TimeoutError):
            _silent_until = time.monotonic() + SILENCE
        event(logger, "bell_not_rung", level=logging.WARNING, error=error)


def ring_on_commit() -> None:
    """Wake beat when the caller's transaction commits, once however often this is called."""
    callbacks: list[Any] = connection.run_on_commit
    if callbacks and callbacks[-1][1] is ring:
        return
    transaction.on_commit(ring)


class Listener:
    """Beat's ear. While Redis is away it is only a clock."""

    def __init__(self) -> None:
        self._pubsub: Any = None

    def wait(self, seconds: float) -> bool:
        """Return True at the next ring, or False after `seconds`.

        Rings that came together count once.
        """
        until = time.monotonic() + max(seconds, 0.0)
        try:
            if self._pubsub is None:
                self._pubsub = self._subscribe()
            while self._pubsub.get_message(timeout=max(until - time.monotonic(), 0.0)) is None:
                if time.monotonic() >= until:
                    return False
            while self._pubsub.get_message(timeout=0) is not None:
                pass
            return True
        except (redis.RedisError, OSError) as error:
            event(logger, "bell_not_heard", level=logging.WARNING, error=error)
            self.close()
            time.sleep(max(until - time.monotonic(), 0.0))
            return False

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
