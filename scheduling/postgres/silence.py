"""Ends the wait for a Postgres that does not answer.

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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from django.conf import settings

from scheduling.logs import event

logger = logging.getLogger(__name__)


class Waits:
    """Ends each wait for an answer that takes too long.

    Only of what is asked while a thread has entered this, or of connections that `time_each`
    names: what a job asks Postgres may take as long as it likes. A thread that has entered may be
    at work between two answers for as long as it likes, too.
    """

    def __init__(self) -> None:
        # By thread: since when it waits for an answer, and on which connection.
        self._waiting: dict[int, tuple[float, psycopg.Connection[Any]]] = {}
        self._entered = threading.local()

    @property
    def entered(self) -> bool:
        """Whether this thread has entered."""
        return bool(getattr(self._entered, "depth", 0))

    def __enter__(self) -> None:
        self._entered.depth = getattr(self._entered, "depth", 0) + 1

    def __exit__(self, *_: object) -> None:
        self._entered.depth -= 1

    @contextmanager
    def for_answer(self, raw: "psycopg.Connection[Any]") -> Iterator[None]:
        """While this lasts, the thread waits for one answer on this connection."""
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
        """Hang up, as long as this process lives, if a thread waits so long for one answer.

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
            for since, raw in list(self._waiting.values()):
                if now - since > patience:
                    _hang_up(raw)


def _hang_up(raw: "psycopg.Connection[Any]") -> None:
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(raw.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)
        event(logger, "database_silent", level=logging.WARNING)


def time_answers(*, connection: Any, **_: Any) -> None:
    """Notice what a new connection of Django's waits for."""
    if connection.vendor != "postgresql":
        return
    raw = connection.connection
    wait = raw.wait

    def timed(*args: Any, **kwargs: Any) -> Any:
        with waits.for_answer(raw):
            return wait(*args, **kwargs)

    raw.wait = timed


def time_each(raw: Any) -> None:
    """Limit every wait on this connection, whichever thread waits."""
    raw.truebeat_timed = True


waits = Waits()
