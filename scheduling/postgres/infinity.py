"""Instants and dates beyond Python's range, read as the first or the last that Python has.

Raw SQL can write `infinity`, or a year beyond 9999, into any table; psycopg refuses to read it. One
such row must not keep a page from showing all others, nor a beat or a worker from its work.
"""

from datetime import UTC, date, datetime
from typing import Any

from django.db import DEFAULT_DB_ALIAS
from psycopg import DataError
from psycopg.types.datetime import DateLoader, TimestamptzLoader

# Not the very ends: there a time zone's offset, or a day that is added, overflows.
FIRST, LAST = datetime(1, 1, 3, tzinfo=UTC), datetime(9999, 12, 29, tzinfo=UTC)


def saturated(column: str) -> str:
    """Return SQL for a timestamp that Python can hold, for lean cursors; NULL stays NULL."""
    low, high = (f"'{instant.isoformat()}'::timestamptz" for instant in (FIRST, LAST))
    return (
        f"CASE WHEN {column} < {low} THEN {low} WHEN {column} > {high} THEN {high} "
        f"ELSE {column} END"
    )


class Loader(TimestamptzLoader):
    """Reads instants as Django's own does, in UTC, and refuses none."""

    timezone = UTC  # which Django asks its loader for

    def load(self, data: Any) -> datetime:
        try:
            return super().load(data).replace(tzinfo=UTC)
        except DataError:
            return FIRST if _is_early(data) else LAST


class DayLoader(DateLoader):
    """Reads dates, and refuses none."""

    def load(self, data: Any) -> date:
        try:
            return super().load(data)
        except DataError:
            return (FIRST if _is_early(data) else LAST).date()


def _is_early(data: Any) -> bool:
    text = bytes(data)
    return text.startswith(b"-") or text.endswith(b"BC")


def read_instants(*, connection: Any, **_: Any) -> None:
    """Let a new connection to the ledger read every date and, lean cursors apart, every instant."""
    if connection.alias == DEFAULT_DB_ALIAS and connection.timezone == UTC:
        connection.connection.adapters.register_loader("timestamptz", Loader)
        connection.connection.adapters.register_loader("date", DayLoader)
