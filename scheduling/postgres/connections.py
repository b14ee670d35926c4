"""Cleans the connections of a worker's child, so that no run inherits another run's session."""

import gc
import logging
import time
import traceback
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.signals import connection_created
from psycopg.pq import ExecStatus, TransactionStatus

from scheduling.logs import event
from scheduling.postgres import silence

logger = logging.getLogger(__name__)


# What a job can leave in its session, but for the plans of statements: those of every run stay.
# A function can call `set_config`, so no text of a statement tells: all is reset that can be.
# The answer is what `PREPARE` has left: whoever prepares under that name next would fail.
CLEAN = """
CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; UNLISTEN *;
SELECT pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES; {own};
SELECT name FROM pg_prepared_statements WHERE from_sql LIMIT 1
"""


def note_statements(*, connection: Any, **_: Any) -> None:
    """Note on a new connection when it is asked something by code that is not the engine's.

    Whatever the engine asks between a job's end and the next one's beginning, it asks within
    `waits`. So a connection that no job has used is known to be as it was, at no cost.
    """
    if connection.vendor != "postgresql":
        return
    raw = connection.connection
    raw.truebeat_client, raw.truebeat_used, wait = _client_side(raw), False, raw.wait

    def noted(*args: Any, **kwargs: Any) -> Any:
        if not silence.waits.entered:
            raw.truebeat_used = True
        return wait(*args, **kwargs)

    raw.wait = noted


def _client_side(raw: Any) -> tuple[object, ...]:
    """Return what psycopg itself keeps for a connection, and Postgres knows nothing of."""
    return raw.isolation_level, raw.read_only, raw.deferrable, bool(raw._notify_handlers)


def drop_unclean(error: object = None, *, tried_again: bool = True) -> None:
    """Clean connections that a job has used; close those that are old, lost, or cannot be cleaned.

    `error` is what the job ended with, if it did. Django asks of a connection whether it works
    before it is used next. Not of the ledger's, for that would be a statement more for each run,
    where what is done with it is `tried_again` on another (`patience.patiently`).
    """
    django: Any
    for django in connections.all(initialized_only=True):
        _drop_if_unclean(django, error)
        django.health_check_done = tried_again and django.alias == DEFAULT_DB_ALIAS


def _drop_if_unclean(django: Any, error: object) -> None:
    if django.in_atomic_block:
        _leave_atomic_block(django, error)
    raw = django.connection
    if raw is None:
        return
    status = TransactionStatus.IDLE
    changed = django.autocommit != django.settings_dict["AUTOCOMMIT"]
    if django.vendor == "postgresql":
        status = raw.pgconn.transaction_status  # `raw.info` takes ten times as long
    if status not in (TransactionStatus.IDLE, TransactionStatus.UNKNOWN):  # UNKNOWN: it is lost
        event(logger, "connection_left_open", level=logging.ERROR)
    old = django.close_at is not None and time.monotonic() >= django.close_at
    lost = status != TransactionStatus.IDLE or django.errors_occurred
    if lost or old or changed or not _is_as_new(django, raw):
        django.close()


def _is_as_new(django: Any, raw: Any) -> bool:
    """Clean a session that a job has used; return False if only another connection is clean."""
    if not getattr(raw, "truebeat_used", False):
        return True
    try:
        return _is_cleaned(django, raw)
    except Exception:  # whatever a project does to a new connection
        logger.warning("connection_not_cleaned", exc_info=True)
        return False


def _is_cleaned(django: Any, raw: Any) -> bool:
    """Give a session back its first state; return False if only another connection has that."""
    if _client_side(raw) != raw.truebeat_client:
        return False
    own = f"SELECT set_config('TimeZone', {_literal(django.timezone_name)}, false)"
    if role := django.settings_dict["OPTIONS"].get("assume_role"):
        own += f"; SELECT set_config('role', {_literal(role)}, false)"
    with silence.waits, silence.waits.for_answer(raw):
        answer = raw.pgconn.exec_(CLEAN.format(own=own).encode())
    if answer.status != ExecStatus.TUPLES_OK or answer.ntuples:
        return False
    while raw.pgconn.notifies():  # what the job listened for
        pass
    for receiver in _others_receivers(django):
        receiver(signal=connection_created, sender=type(django), connection=django)
    raw.truebeat_used = False
    return True


def _literal(text: str) -> str:
    quoted = text.replace("'", "''").replace("\\", "\\\\")
    return f"E'{quoted}'"


def _others_receivers(django: Any) -> list[Any]:
    """Return what a project does to each new connection, which has just been undone."""
    live: Any = connection_created._live_receivers(type(django))
    receivers = live[0] if isinstance(live, tuple) else live
    return [
        one
        for one in receivers
        if not str(getattr(one, "__module__", "")).startswith("scheduling.")
    ]


def _leave_atomic_block(django: Any, error: object) -> None:
    """End Django's transaction, which a job left open: what is written next is not to be in it.

    A generator that stopped inside the block would end it later, in the midst of another's
    transaction. So it is closed first, which ends the block as it should be.
    """
    event(logger, "connection_left_open", level=logging.ERROR)
    _clear_frames(error)
    gc.collect()
    if django.in_atomic_block:
        # Within a block, Django only notes that its connection is closed.
        django.in_atomic_block = django.closed_in_transaction = False
        django.close()


def _clear_frames(error: object) -> None:
    """Let go of all that the code which raised `error`, or what led to it, had in hand."""
    cleared, errors = set[int](), [error]
    while errors:
        one = errors.pop()
        if isinstance(one, BaseException) and id(one) not in cleared:
            cleared.add(id(one))
            traceback.clear_frames(one.__traceback__)
            errors += one.__cause__, one.__context__, getattr(one, "exc", None)  # of a Retry
            errors += getattr(one, "exceptions", ())
