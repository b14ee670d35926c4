"""The id of this ledger: hints carry it, so that two installations can be told apart.

A cluster of Postgres gets a number when it is made, and so does each database. So a copy made with
pg_dump is another ledger, and a standby that takes over is the same ledger.
"""

import logging
from contextlib import nullcontext
from uuid import UUID

from django.db import connection, transaction
from django.db.utils import ProgrammingError

from scheduling.logs import event

logger = logging.getLogger(__name__)

IDENTITY = """
SELECT md5((SELECT system_identifier FROM pg_control_system()) || '/' || oid)::uuid
  FROM pg_database WHERE datname = current_database()
"""
# For a role that must not read the cluster's number.
NAME_ONLY = "SELECT md5(current_database())::uuid"

_known = ""


def ledger_id() -> str:
    """Return the id of this process's ledger, as it was at the last query for it."""
    return _known or ask_ledger_id()


def ask_ledger_id() -> str:
    """Return the id of the ledger: one query."""
    global _known
    try:
        with transaction.atomic() if connection.in_atomic_block else nullcontext():
            found = _one(IDENTITY)
    except ProgrammingError as error:
        event(logger, "ledger_unnumbered", level=logging.WARNING, error=error)
        found = _one(NAME_ONLY)
    _known = str(found)
    return _known


def _one(sql: str) -> UUID:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        found: UUID = cursor.fetchone()[0]
    return found
