"""Heartbeats: each beat and worker writes a row about itself every few seconds."""

import os
from datetime import timedelta
from typing import Any, NamedTuple

from celery import __version__ as celery_version
from django.db import connection
from django.db.models.functions import Now

from scheduling import __version__
from scheduling.ids import uuid7
from scheduling.models import Heartbeat

# A service not seen for this long is taken for dead; its row goes after a day.
STALE = timedelta(seconds=45)
FORGOTTEN = timedelta(days=1)
SHARED = "Redis is shared with ledger"  # said in a beat's row, before the ids of the others

BEAT = """
INSERT INTO scheduling_heartbeat
    (name, service, host, pid, version, started_at, seen_at, doing)
VALUES (%(name)s, %(service)s, %(host)s, %(pid)s, %(version)s, clock_timestamp(),
        clock_timestamp(), %(doing)s)
ON CONFLICT (name) DO UPDATE SET seen_at = EXCLUDED.seen_at, doing = EXCLUDED.doing
"""

STATUS = """
SELECT service, count(*), extract(epoch FROM clock_timestamp() - max(seen_at))::float
  FROM scheduling_heartbeat
 WHERE seen_at > clock_timestamp() - %(stale)s::interval AND (%(host)s = '' OR host = %(host)s)
 GROUP BY service
"""


class Status(NamedTuple):
    """How many of a service are alive, and how many seconds ago the last of them was seen."""

    alive: int
    seen_ago: float


def new_name(service: str) -> str:
    """Return the name under which this process writes its heartbeat."""
    return f"{service}@{os.uname().nodename}:{os.getpid()}:{uuid7().hex[-8:]}"


def pulse(name: str, service: str, doing: str) -> None:
    """Write that this process is alive, with its last activity."""
    parameters: dict[str, Any] = {
        "name": name,
        "service": service,
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "version": f"truebeat {__version__}, celery {celery_version}",
        "doing": doing[:200],
    }
    with connection.cursor() as cursor:
        cursor.execute(BEAT, parameters)


def forget_dead() -> int:
    """Delete the rows of services that were last seen a day ago; return how many."""
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM scheduling_heartbeat WHERE seen_at < clock_timestamp() - %s::interval",
            [str(FORGOTTEN)],
        )
        return int(cursor.rowcount)


def farewell(name: str) -> None:
    """Delete this process's row at its orderly end."""
    Heartbeat.objects.filter(pk=name).delete()


def shared_redis() -> str:
    """Return with which other ledgers this one shares its Redis, as a beat said; "" with none."""
    beats = Heartbeat.objects.filter(
        service="beat", doing__contains=SHARED, seen_at__gt=Now() - STALE
    )
    doing = beats.values_list("doing", flat=True).first() or ""
    return doing[doing.index(SHARED) :] if doing else ""


def alive(host: str = "") -> dict[str, Status]:
    """Return the live beats and workers, by service, on one host or (by default) anywhere."""
    parameters: dict[str, Any] = {"stale": STALE, "host": host}
    with connection.cursor() as cursor:
        cursor.execute(STATUS, parameters)
        return {service: Status(count, ago) for service, count, ago in cursor.fetchall()}
