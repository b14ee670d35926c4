"""The one clock, which is the database's; and the local time of TIME_ZONE."""

from datetime import datetime
from typing import cast

from django.db import connection
from django.utils import timezone


def now() -> datetime:
    """Return Postgres's `clock_timestamp()`, an aware UTC instant."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        return cast(datetime, cursor.fetchone()[0])


def local(instant: datetime) -> datetime:
    """Return the instant in TIME_ZONE; in UTC at either end of datetime's years."""
    try:
        return timezone.localtime(instant)
    except OverflowError:
        return instant
