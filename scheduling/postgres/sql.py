"""Fast rows in bulk, errors by their kind, and texts that Postgres can hold.

psycopg writes a list as an array value by value in Python, and Django reads every timestamp in
Python; over a batch of 500 rows that costs more than Postgres itself.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psycopg
from django.db import InterfaceError, OperationalError, connection, transaction
from psycopg.pq import Format

TIMESTAMPTZ = psycopg.postgres.types["timestamptz"].oid


@contextmanager
def lean_cursor() -> Iterator[Any]:
    """A cursor whose timestamps are read by psycopg itself: aware, in the session's zone, UTC."""
    with connection.cursor() as cursor:
        lean(cursor.cursor)
        yield cursor


def lean(cursor: "psycopg.Cursor[Any]") -> "psycopg.Cursor[Any]":
    """Return the cursor, made to read timestamps so."""
    loader: Any = psycopg.postgres.adapters.get_loader(TIMESTAMPTZ, Format.TEXT)
    cursor.adapters.register_loader(TIMESTAMPTZ, loader)
    return cursor


def arrays(rows: Sequence[tuple[object, ...]], width: int) -> list[str]:
    """Return the columns of `rows` as Postgres array literals, to be cast (`%s::uuid[]`)."""
    if not rows:
        return ["{}"] * width
    return [_array(column) for column in zip(*rows, strict=True)]


def _array(column: tuple[object, ...]) -> str:
    # Most columns of a batch hold one value, or a few, many times.
    elements = {value: _element(value) for value in set(column)}
    return f"{{{','.join([elements[value] for value in column])}}}"


def _element(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, datetime):
        return f'"{value.isoformat()}"'
    return str(value)


# SQLSTATEs: too long idle in a transaction, too long in one.
ENDED = ("25P03", "25P04")


def was_ended(error: BaseException) -> bool:
    """Return whether Postgres has ended the transaction of a process that was frozen in it.

    Other processes have taken its rows, and nothing is wrong. Django raises another error than
    OperationalError for it.
    """
    return getattr(error.__cause__, "sqlstate", None) in ENDED


TIMED_OUT = "57014"  # SQLSTATE


@contextmanager
def statement_timeout(seconds: float | None) -> Iterator[None]:
    """Cancel a statement that takes longer, in a transaction of its own; None: no limit.

    Raises:
        OperationalError: it was cancelled; see `was_timed_out`.
    """
    if seconds is None:
        yield
        return
    nested = connection.in_atomic_block
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL statement_timeout = {max(round(seconds * 1000), 1)}")
        yield
        if nested:  # else the setting ends with the transaction
            cursor.execute("SET LOCAL statement_timeout TO DEFAULT")


def was_timed_out(error: BaseException) -> bool:
    """Return whether Postgres has cancelled a statement for its `statement_timeout`."""
    return _sqlstate(error) == TIMED_OUT


READ_ONLY = "25006"  # SQLSTATE
# Serialization failure, deadlock, lock not available: Postgres is there, and asks to try again.
CONFLICTS = {"40001", "40P01", "55P03"}


def is_away(error: BaseException) -> bool:
    """Return whether an error says that the database is away: that can be waited out.

    A server that refuses writes is a standby, or has become one: the primary is elsewhere.
    """
    if isinstance(error, OperationalError | InterfaceError):
        return True
    return _sqlstate(error) == READ_ONLY


def is_conflict(error: BaseException) -> bool:
    """Return whether Postgres refused a statement for another transaction's sake."""
    return _sqlstate(error) in CONFLICTS


def _sqlstate(error: BaseException) -> str | None:
    state: str | None = getattr(error.__cause__, "sqlstate", None)
    return state


@contextmanager
def going_on(logger: logging.Logger, name: str) -> Iterator[None]:
    """Log an error in this block as event `name`, and go on with the next step.

    An error that says that the database is away is raised: it stops all steps.
    """
    try:
        yield
    except Exception as error:
        if is_away(error) or was_ended(error):
            raise
        logger.exception(name)


def clean(text: str) -> str:
    """Return `text` without characters that Postgres cannot hold: NUL and lone surrogates."""
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


def shortened(text: str, most: int) -> str:
    """Return `text`; without its middle if it has more than `most` characters."""
    if len(text) <= most:
        return text
    left_out = f" [... {len(text) - most:,} characters ...] "
    return text[: most // 2] + left_out + text[-(most // 2) :]
