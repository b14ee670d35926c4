"""Crontabs whose time zone this machine does not know: read, shown, and kept as they are.

Raw SQL can write any name, and a new release of the time zone data can drop a name.
django-celery-beat's field refuses to read such a row, and with it every list that the row is in. A
rule with an unknown zone cannot be evaluated, which `recurrence` says by name.
"""

from io import BytesIO
from struct import pack
from typing import Any
from zoneinfo import ZoneInfo

from django.core.exceptions import ValidationError
from django_celery_beat.models import CrontabSchedule

# A zone file (RFC 8536) with one kind of local time, UTC, and no change of it.
UTC_FILE = b"TZif" + bytes(16) + pack(">6l", 0, 0, 0, 0, 1, 4) + pack(">lBB", 0, 0, 0) + b"UTC\0"


class UnknownZone(ZoneInfo):
    """Has the name of a zone that is not known here, and the clocks of UTC."""


def unknown_zone(name: str) -> ZoneInfo:
    return UnknownZone.from_file(BytesIO(UTC_FILE), key=name)


def read_unknown_zones() -> None:
    """Let django-celery-beat's crontabs be read with any name of a zone."""
    field: Any = CrontabSchedule._meta.get_field("timezone")
    known = type(field).from_db_value

    def read(value: str | None, *_: Any) -> Any:
        try:
            return known(field, value)
        except (ValidationError, ValueError, OSError):
            return unknown_zone(str(value))

    field.from_db_value = read
