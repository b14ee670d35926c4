"""Prepared statements, which Postgres plans once for each connection.

Errors are Django's. The server binds the parameters: the SQL needs a cast if the place of a
parameter does not determine its type.
"""

import re
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import psycopg
from django.db import DEFAULT_DB_ALIAS, connections
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import (
    DuplicatePreparedStatement,
    InvalidSqlStatementName,
    error_from_result,
)
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, TransactionStatus

from scheduling.postgres import pooler, silence
from scheduling.postgres.sql import lean

PLANS_LAST = 5.0  # seconds
SLOT = re.compile(r"%\((\w+)\)s|%%")

# The SQLSTATE of a prepared statement that does not exist. After a rollback, also of a savepoint,
# psycopg deallocates all statements of the connection, even statements it did not prepare.
GONE = b"26000"

# Errors behind a pooler that has given the session to another client in between.
FOREIGN = (InvalidSqlStatementName, DuplicatePreparedStatement)

Row = tuple[Any, ...]


class _Prepared(NamedTuple):
    """The state of a connection's prepared statements."""

    cursor: "psycopg.Cursor[Any]"
    adapter: Any  # a Transformer, of the cursor's types, for statements that run without it
    names: dict[str, bytes]  # of those statements, by their SQL
    plan_anew_at: float


def run_prepared(sql: str, parameters: Mapping[str, object] | Sequence[object]) -> list[Row]:
    """Run a prepared statement; return its rows, if any.

    The cursor is made once for each connection: a new one of Django's would take longer than the
    statement.
    """
    django = connections[DEFAULT_DB_ALIAS]
    with django.wrap_database_errors:
        django.ensure_connection()
        raw: Any = django.connection
        cursor = _prepared(raw).cursor
        try:
            cursor.execute(sql, parameters, prepare=True)
        except FOREIGN as error:
            _do_without(raw, error)
            if raw.info.transaction_status != TransactionStatus.IDLE:
                raise  # the code that began the transaction runs it again
            cursor.execute(sql, parameters, prepare=True)
        # `description` would be built for all columns.
        return cursor.fetchall() if cursor.pgresult and cursor.pgresult.nfields else []


def run_alone(sql: str, parameters: Mapping[str, object]) -> list[Row]:
    """Run a prepared statement that is a transaction of its own, without psycopg's cursor.

    Each run needs two such statements, and the cursor takes longer than Postgres. libpq waits for
    the answer itself: no signal interrupts this thread before the answer is there.
    """
    django: Any = connections[DEFAULT_DB_ALIAS]
    if django.in_atomic_block:
        return run_prepared(sql, parameters)
    with django.wrap_database_errors:
        django.ensure_connection()
        raw = django.connection
        numbered, (_, adapter, names, _) = _numbered(sql), _prepared(raw)
        if raw.prepare_threshold is None:
            return run_prepared(sql, parameters)
        values = [parameters[slot] for slot in numbered.slots]
        dumped = adapter.dump_sequence(values, numbered.formats)
        try:
            with silence.waits.for_answer(raw):
                result = raw.pgconn.exec_prepared(_name_of(sql, raw, names), dumped)
                if result.error_field(DiagnosticField.SQLSTATE) == GONE:
                    names.clear()
                    result = raw.pgconn.exec_prepared(_name_of(sql, raw, names), dumped)
            _checked(raw, result)
        except FOREIGN as error:
            _do_without(raw, error)
            return run_prepared(sql, parameters)
        adapter.set_pgresult(result)
        rows: list[Row] = adapter.load_rows(0, result.ntuples, tuple)
        return rows


def _name_of(sql: str, raw: Any, names: dict[str, bytes]) -> bytes:
    """Return the name of a statement on this connection; prepare it if that is still to do."""
    if sql not in names:
        name = b"alone_%s_%d" % (secrets.token_hex(8).encode(), len(names))
        _checked(raw, raw.pgconn.prepare(name, _numbered(sql).sql))
        names[sql] = name
    return names[sql]


def _prepared(raw: Any) -> _Prepared:
    kept: _Prepared | None = getattr(raw, "truebeat_prepared", None)
    if kept is None or time.monotonic() >= kept.plan_anew_at:
        kept = raw.truebeat_prepared = _plan_anew(raw, kept)
    return kept


def _plan_anew(raw: Any, prepared: _Prepared | None) -> _Prepared:
    """Make Postgres forget the plans of a connection, because tables grow.

    The best plan for a ledger with a few rows reads all of them. A minute later that takes
    milliseconds for each run, and the plan would stay until the next autovacuum.
    """
    until = time.monotonic() + PLANS_LAST
    if prepared is not None:
        if raw.prepare_threshold is not None:
            prepared.cursor.execute("DISCARD PLANS")
        return prepared._replace(plan_anew_at=until)
    if not pooler.may_prepare(raw):
        raw.prepare_threshold = None  # psycopg then never prepares
    elif raw.prepare_threshold is None:
        raw.prepare_threshold = sys.maxsize
    # psycopg counts from 0: other clients of the same session would have the same names.
    raw._prepared._prepared_idx = secrets.randbits(62)
    cursor = lean(psycopg.Cursor(raw))
    return _Prepared(cursor, Transformer(cursor), {}, until)


def _do_without(raw: Any, error: Exception) -> None:
    """Stop preparing on this connection: another client uses the same session."""
    pooler.note(raw, error)
    raw.prepare_threshold = None


class _Numbered(NamedTuple):
    """SQL with `$1` for the first of its named parameters, and so on; the names in that order."""

    sql: bytes
    slots: list[str]
    formats: list[PyFormat]


@lru_cache
def _numbered(sql: str) -> _Numbered:
    slots: list[str] = []

    def number(found: re.Match[str]) -> str:
        name = found[1]
        if name is None:
            return "%"
        if name not in slots:
            slots.append(name)
        return f"${slots.index(name) + 1}"

    text = SLOT.sub(number, sql).encode()
    return _Numbered(text, slots, [PyFormat.TEXT] * len(slots))


def _checked(raw: Any, result: Any) -> Any:
    """Return the answer of Postgres, or raise its error."""
    if result.status in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
        return result
    error = error_from_result(result)
    if raw.pgconn.status == ConnStatus.BAD:  # without an answer
        raise psycopg.OperationalError(*error.args)
    raise error
