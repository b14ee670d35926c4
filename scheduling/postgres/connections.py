"""The connections of a worker's child: what one run leaves on them is no other's."""

import gc
import logging
import time
import traceback
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections
from psycopg.pq import TransactionStatus

from scheduling.logs import event

logger = logging.getLogger(__name__)


# Settings of a session that Postgres tells of with its answers, search_path from version 18 on. Of
# others, `lock_timeout` or a role say, nobody knows without a statement more for each run.
REPORTED = (
    b"TimeZone", b"search_path", b"DateStyle", b"IntervalStyle", b"default_transaction_read_only",
    b"session_authorization",
)  # fmt: skip


def note_settings(*, connection: Any, **_: Any) -> None:
    """Keep what a new connection's settings are, to know when a job has changed them."""
    if connection.vendor == "postgresql":
        connection.connection.truebeat_settings = _settings(connection.connection.pgconn)


def _settings(postgres: Any) -> list[bytes | None]:
    return [*map(postgres.parameter_status, REPORTED)]


def drop_unclean(error: object = None, *, tried_again: bool = True) -> None:
    """Close connections that are old or lost, or that a job left in a state of its own.

    `error` is what the job ended with, if it did. Django asks of a connection whether it works
    before it is used next. Not of the ledger's, for that would be a statement more for each run,
    where what is done with it is `tried_again` on another (`claiming.patiently`).
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
        if status == TransactionStatus.IDLE and not changed:
            changed = _settings(raw.pgconn) != getattr(raw, "truebeat_settings", None)
    if status not in (TransactionStatus.IDLE, TransactionStatus.UNKNOWN):  # UNKNOWN: it is lost
        event(logger, "connection_left_open", level=logging.ERROR)
    old = django.close_at is not None and time.monotonic() >= django.close_at
    if status != TransactionStatus.IDLE or old or changed or django.errors_occurred:
        django.close()


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
