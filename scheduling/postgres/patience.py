"""Repeats an act while the database is away, until it is back or for a limited time."""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TypeVar

from django.db import Error, connection

from scheduling.logs import event
from scheduling.postgres.silence import waits
from scheduling.postgres.sql import is_away, is_conflict

logger = logging.getLogger(__name__)

T = TypeVar("T")


def patiently(
    act: Callable[[], T],
    patience: timedelta | None = None,
    guard: AbstractContextManager[object] = waits,
) -> T:
    """Return act(), tried again while the database is away: for ever, or for `patience`.

    The patience begins with the first error: an act may take longer than that. `guard` is held
    during each try, and not in the pauses.
    """
    begun, pause = 0.0, 0.1
    while True:
        try:
            with guard:
                return act()
        except Error as error:
            if not is_away(error):
                raise
            begun = begun or time.monotonic()
            waited = time.monotonic() - begun
            name = "conflict_retried" if is_conflict(error) else "database_away"
            event(logger, name, level=logging.WARNING, waited=round(waited, 1), error=error)
            with guard:
                connection.close()
            if patience is not None and waited >= patience.total_seconds():
                raise
            time.sleep(pause)
            pause = min(pause * 2, 2.0)
