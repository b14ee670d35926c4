"""Beat's own session of Postgres: its settings, and time limits for its statements."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection, transaction

from scheduling.postgres import pooler, silence

# A row that a user's transaction has locked stops beat for 2 s at most. Beat's statements have an
# index each, also if a table was small when the statement was planned. While Postgres sends an
# answer that is not read, its own time-outs do not act; the kernel's then ends the connection.
SETTINGS = "SET lock_timeout = '2s'; SET enable_seqscan = off; SET tcp_user_timeout = '8s'"
WAIT_BRIEFLY = "SET LOCAL lock_timeout = '2s'"


class Session:
    """Prepares each new connection once."""

    def __init__(self) -> None:
        self._prepared: Any = None

    def prepare(self) -> None:
        if connection.connection is not None and connection.connection is self._prepared:
            return
        connection.ensure_connection()
        # Behind a pooler the settings would also be those of another client.
        if not pooler.is_behind(connection.connection):
            with silence.waits, connection.cursor() as cursor:
                cursor.execute(SETTINGS)
        silence.time_each(connection.connection)
        self._prepared = connection.connection


@contextmanager
def waiting_briefly() -> Iterator[None]:
    """Limit the wait for a locked row behind a pooler, where SETTINGS cannot."""
    if not pooler.is_behind(connection.connection):
        yield
        return
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(WAIT_BRIEFLY)
        yield
