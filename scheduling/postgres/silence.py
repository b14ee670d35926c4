"""Ends the wait for a Postgres that does not answer.

A network that drops every packet does not report it. A statement would wait as long as TCP does,
which may be a quarter of an hour, or for ever if a device on the way acknowledges packets that it
never forwards. Leases would expire unseen, or be renewed for a child that waits in vain.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from django.conf import settings

from scheduling.logs import event

logger = logging.getLogger(__name__)


class Waits:
    """Ends each wait for an answer that takes too long.

    Waits are limited only in a thread that has entered this, and on connections that `time_each`
    names: the statements of a job may take any time. The time between two answers is not limited.
    """

    def __init__(self) -> None:
        # By thread: since when it waits for an answer, and on which connection.
        self._waiting: dict[int, tuple[float, psycopg.Connection[Any]]] = {}
        self._entered = threading.local()

    @property
    def entered(self) -> bool:
        """Whether the waits of this thread are limited now."""
        return bool(getattr(self._entered, "depth", 0))

    def __enter__(self) -> None:
        self._entered.depth = getattr(self._entered, "depth", 0) + 1

    def __exit__(self, *_: object) -> None:
        self._entered.depth -= 1

    @contextmanager
    def for_answer(self, raw: "psycopg.Connection[Any]") -> Iterator[None]:
        """Mark the time in which this thread waits for one answer on this connection."""
        if not self.entered and not hasattr(raw, "truebeat_timed"):
            yield
            return
        thread = threading.get_ident()
        self._waiting[thread] = time.monotonic(), raw
        try:
            yield
        finally:
            self._waiting.pop(thread, None)

    def watch(self, *, seconds: float | None = None, **_: Any) -> None:
        """Close a connection if a thread waits longer than `seconds` for one answer on it.

        The waiting thread gets an OperationalError, and tries again on another connection. This
        goes on until the process ends.

        Args:
            seconds: None stands for a third of a lease.
        """
        self._waiting.clear()  # of a parent, in a child
        patience = settings.RUN_LEASE.total_seconds() / 3 if seconds is None else seconds
        threading.Thread(target=self._live, args=[patience], name="silence", daemon=True).start()

    def _live(self, patience: float) -> None:
        # A signal delivered to this thread would not interrupt the main thread's sleep.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            time.sleep(patience / 4)
            now = time.monotonic()
            for since, raw in list(self._waiting.values()):
                if now - since > patience:
                    _hang_up(raw)


def _hang_up(raw: "psycopg.Connection[Any]") -> None:
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(raw.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)
        event(logger, "database_silent", level=logging.WARNING)


def time_answers(*, connection: Any, **_: Any) -> None:
    """Limit the waits of a new connection of Django's, if its thread has entered `waits`."""
    if connection.vendor != "postgresql":
        return
    raw = connection.connection
    wait = raw.wait

    def timed(*args: Any, **kwargs: Any) -> Any:
        with waits.for_answer(raw):
            return wait(*args, **kwargs)

    raw.wait = timed


def time_each(raw: Any) -> None:
    """Limit every wait on this connection, in any thread."""
    raw.truebeat_timed = True


waits = Waits()
