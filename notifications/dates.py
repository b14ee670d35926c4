"""Today's date, by Postgres's clock in the organisation's time zone."""

from datetime import date
from typing import Any, ClassVar, cast

from django.conf import settings
from django.db import connection
from django.db.models import DateField, Func, Value


class Today(Func):
    """Postgres's date in TIME_ZONE, inside a query."""

    template = "(clock_timestamp() AT TIME ZONE %(expressions)s)::date"
    output_field: ClassVar[Any] = DateField()

    def __init__(self) -> None:
        super().__init__(Value(settings.TIME_ZONE))


def today() -> date:
    """Return Postgres's date in TIME_ZONE."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT (clock_timestamp() AT TIME ZONE %s)::date", [settings.TIME_ZONE])
        return cast(date, cursor.fetchone()[0])


def parse_day(text: str) -> date:
    """Return the date that `text` writes as YYYY-MM-DD, and in no other form of ISO 8601.

    Raises:
        ValueError: the text is not such a date.
    """
    day = date.fromisoformat(text)
    if day.isoformat() != text:
        raise ValueError(f"{text!r} is not written as YYYY-MM-DD")
    return day
