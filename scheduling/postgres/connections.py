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


# Resets everything that a job can leave in its session, except for the plans of statements, which
# every run may keep. A function can call `set_config`, so the text of a statement does not tell.
# The query returns statements of the job's own PREPARE: their names would be taken.
CLEAN = """
CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; UNLISTEN *;
SELECT pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES; {own};
SELECT name FROM pg_prepared_statements WHERE from_sql LIMIT 1
"""


def note_statements(*, connection: Any, **_: Any) -> None:
    """Make a new connection note its use by code that is not the engine's.

    The engine's own statements between two jobs run within `waits`. So a connection that no job has
    used is known to be clean, at no cost.
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
    """Return the state of a connection that psycopg keeps itself, without Postgres."""
    return raw.isolation_level, raw.read_only, raw.deferrable, bool(raw._notify_handlers)


def drop_unclean(error: object = None, *, tried_again: bool = True) -> None:
    """Clean connections that a job has used; close old, lost and uncleanable ones.

    Args:
        error: the exception that ended the job, if there was one.
        tried_again: the next statements on the ledger's connection are retried on another one if
            they fail (`patience.patiently`). Django then need not test the connection first, which
            would be one more statement for each run.
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
    except Exception:  # a project's own receiver of `connection_created` may raise anything
        logger.warning("connection_not_cleaned", exc_info=True)
        return False


def _is_cleaned(django: Any, raw: Any) -> bool:
    """Reset a session to its first state; return False if only a new connection can have it."""
    if _client_side(raw) != raw.truebeat_client:
        return False
    own = f"SELECT set_config('TimeZone', {_literal(django.timezone_name)}, false)"
    if role := django.settings_dict["OPTIONS"].get("assume_role"):
        own += f"; SELECT set_config('role', {_literal(role)}, false)"
    with silence.waits, silence.waits.for_answer(raw):
        answer = raw.pgconn.exec_(CLEAN.format(own=own).encode())
    if answer.status != ExecStatus.TUPLES_OK or answer.ntuples:
        return False
    while raw.pgconn.notifies():  # notifications for the job
        pass
    for receiver in _others_receivers(django):
        receiver(signal=connection_created, sender=type(django), connection=django)
    raw.truebeat_used = False
    return True


def _literal(text: str) -> str:
    quoted = text.replace("'", "''").replace("\\", "\\\\")
    return f"E'{quoted}'"


def _others_receivers(django: Any) -> list[Any]:
    """Return the project's receivers of new connections: the reset has undone their work."""
    live: Any = connection_created._live_receivers(type(django))
    receivers = live[0] if isinstance(live, tuple) else live
    return [
        receiver
        for receiver in receivers
        if not str(getattr(receiver, "__module__", "")).startswith("scheduling.")
    ]


def _leave_atomic_block(django: Any, error: object) -> None:
    """End the transaction that a job left open: the next statements must not be part of it.

    A generator that stopped inside the block would end the block later, in the transaction of
    another run. So the generator is closed first, which ends the block properly.
    """
    event(logger, "connection_left_open", level=logging.ERROR)
    _clear_frames(error)
    gc.collect()
    if django.in_atomic_block:
        # Within a block, Django only notes that its connection is closed.
        django.in_atomic_block = django.closed_in_transaction = False
        django.close()


def _clear_frames(error: object) -> None:
    """Free the local variables of the code that raised `error`, its cause or its context."""
    cleared, errors = set[int](), [error]
    while errors:
        found = errors.pop()
        if isinstance(found, BaseException) and id(found) not in cleared:
            cleared.add(id(found))
            traceback.clear_frames(found.__traceback__)
            errors += found.__cause__, found.__context__, getattr(found, "exc", None)  # of a Retry
            errors += getattr(found, "exceptions", ())
