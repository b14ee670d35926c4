"""Detects a pooler such as PgBouncer between this process and Postgres, and adapts to it.

A pooler that pools transactions gives each transaction another session. Prepared statements,
settings and cursors of a session then reach another client. A pooler cannot be asked whether it
pools transactions, so Truebeat keeps nothing in a session behind any pooler. A pooler shows by the
process id: Postgres answers with another id than the connection has.
"""

import logging
from typing import Any

from django.conf import settings
from django.db import DEFAULT_DB_ALIAS
from psycopg.pq import ExecStatus

from scheduling.logs import event
from scheduling.postgres import silence

logger = logging.getLogger(__name__)

# By host, port and database: whether this process has found a pooler there.
_found: dict[tuple[str, ...], bool] = {}


def notice(*, connection: Any, **_: Any) -> None:
    """Notice whether a new connection goes through a pooler; tested once for each address."""
    if connection.vendor != "postgresql" or connection.alias != DEFAULT_DB_ALIAS:
        return
    raw = connection.connection
    address = _address(raw)
    if address not in _found:
        _found[address] = False
        if _is_between(raw):
            note(raw, "process ids differ")
    if _found[address]:
        connection.settings_dict["DISABLE_SERVER_SIDE_CURSORS"] = True


def is_behind(raw: Any) -> bool:
    """Return whether this psycopg connection goes through a pooler."""
    return _found.get(_address(raw), False)


def may_prepare(raw: Any) -> bool:
    """Return whether statements may be prepared on this connection."""
    wanted: bool | None = settings.PREPARED_STATEMENTS
    return not is_behind(raw) if wanted is None else wanted


def note(raw: Any, why: object) -> None:
    """Note and log that this connection goes through a pooler."""
    _found[_address(raw)] = True
    event(logger, "pooler_found", host=raw.info.host, port=raw.info.port, why=why,
          prepared_statements=bool(settings.PREPARED_STATEMENTS))  # fmt: skip


def _address(raw: Any) -> tuple[str, ...]:
    postgres = raw.pgconn
    return tuple(part.decode() for part in (postgres.host, postgres.port, postgres.db))


def _is_between(raw: Any) -> bool:
    with silence.waits.for_answer(raw):
        answer = raw.pgconn.exec_(b"SELECT pg_backend_pid()")
    if answer.status != ExecStatus.TUPLES_OK:
        return False
    return int(answer.get_value(0, 0) or 0) != int(raw.pgconn.backend_pid)
