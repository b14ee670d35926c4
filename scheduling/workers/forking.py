"""Forks of a worker's parent: what children share, and what its threads hold meanwhile.

None is forked while a thread talks to Postgres or Redis: a child that is forked in the middle of a
connect inherits libpq's or the resolver's locks as they are, and hangs in its own first connect.

And no thread waits for ever. A network that loses everything does not say so: a statement would
wait for as long as TCP does, which may be a quarter of an hour, and leases would run out unseen.
"""

import gc
import logging
import math
import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

import psycopg
from django.conf import settings
from django.db import connections

from scheduling.logs import event

logger = logging.getLogger(__name__)


class NoFork:
    """A lock that is also taken for each fork, and that knows since when a thread has held it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since = math.inf
        self._connection: Any = None  # Django's, of the thread that holds it
        self.forbid, self.allow = self._lock.acquire, self._lock.release

    def __enter__(self) -> None:
        self._lock.acquire()
        self._connection, self._since = connections["default"], time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._since = math.inf
        self._lock.release()

    def end_silences(self) -> None:
        """Hang up, for ever, where Postgres has not answered for a third of a lease."""
        patience = settings.RUN_LEASE.total_seconds() / 3
        while True:
            time.sleep(patience / 4)
            if time.monotonic() - self._since > patience:
                self._since = time.monotonic()
                _hang_up(self._connection.connection)


def _hang_up(raw: "psycopg.Connection[Any] | None") -> None:
    """End the wait of whoever uses this connection: it gets an OperationalError."""
    if raw is None:  # it connects; that has a time-out of its own
        return
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(raw.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)
        event(logger, "database_silent", level=logging.WARNING)


def share_memory() -> None:
    """Keep what has been imported out of Python's garbage collector, before the first fork.

    It writes into every object that it looks at, and so gives each child a copy of nearly all of
    the parent's memory: 40 MB, where 10 MB do.
    """
    gc.collect()
    gc.freeze()


no_fork = NoFork()
os.register_at_fork(
    before=no_fork.forbid, after_in_parent=no_fork.allow, after_in_child=no_fork.allow
)
