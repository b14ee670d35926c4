"""Ends the wait for a Postgres that says nothing.

A network that loses everything does not say so: a statement would wait for as long as TCP does,
which may be a quarter of an hour, and for ever where something on the way acknowledges what it
never passes on. Leases would run out unseen, or be renewed for a child that waits for nothing.
"""

import logging
import os
import signal
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


class Waits:
    """What threads enter while they wait for Postgres, and whose waits have an end."""

    def __init__(self) -> None:
        # By thread: since when it waits, and on which connection of Django's.
        self._waiting: dict[int, tuple[float, Any]] = {}

    def __enter__(self) -> None:
        self._waiting[threading.get_ident()] = time.monotonic(), connections["default"]

    def __exit__(self, *_: object) -> None:
        self._waiting.pop(threading.get_ident(), None)

    def time_each(self, raw: "psycopg.Connection[Any]") -> None:
        """Enter for each single answer that this connection is to give, and for nothing else."""
        wait = raw.wait

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self:
                return wait(*args, **kwargs)

        raw.wait = timed  # type: ignore[method-assign]

    def watch(self, *, seconds: float | None = None, **_: Any) -> None:
        """Hang up, for as long as this process lives, where a thread waits for so many seconds.

        None: for a third of a lease. Whoever waits gets an OperationalError, and tries again on
        another connection.
        """
        self._waiting.clear()  # of a parent, in a child
        patience = settings.RUN_LEASE.total_seconds() / 3 if seconds is None else seconds
        threading.Thread(target=self._live, args=[patience], name="silence", daemon=True).start()

    def _live(self, patience: float) -> None:
        # One that this thread took would not end a sleep of the main one, whose handler is meant.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            time.sleep(patience / 4)
            now = time.monotonic()
            for since, connection in list(self._waiting.values()):
                if now - since > patience:
                    _hang_up(connection.connection)


def _hang_up(raw: "psycopg.Connection[Any] | None") -> None:
    if raw is None:  # it connects; that has a time-out of its own
        return
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(raw.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)
        event(logger, "database_silent", level=logging.WARNING)


waits = Waits()
