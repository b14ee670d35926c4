"""The one clock: the database's."""

from datetime import datetime
from typing import cast

from django.db import connection


def now() -> datetime:
    """Return Postgres's `clock_timestamp()`, an aware UTC instant."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        return cast(datetime, cursor.fetchone()[0])
