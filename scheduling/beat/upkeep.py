"""The thread of beat that repairs rows which no trigger wrote: at its start, and once a day.

Ticks do not wait for this thread: it has a connection of its own. It rests most of the time, as
it shares Python's lock and Postgres with the ticks.
"""

import logging
import threading
import time
from collections.abc import Callable

from django.db import connection

from scheduling.logs import event
from scheduling.postgres.sql import is_away, was_ended
from scheduling.schedules import reconciling

logger = logging.getLogger(__name__)

EVERY = 24 * 3600.0  # seconds
PAUSE = 5.0  # seconds between tries while the database is away
SHARE = 0.1  # of the time that it works
BUSY_PAUSE = 0.05  # seconds between looks whether the ticks are still busy
BUSY_MAX = 10.0  # seconds of busy ticks for which it rests; a beat may be busy for ever


def begin(is_busy: Callable[[], bool]) -> None:
    """Start the thread; it ends with the process.

    Args:
        is_busy: whether a tick fires due schedules now.
    """
    threading.Thread(target=_go_on, args=[is_busy], name="upkeep", daemon=True).start()


def _go_on(is_busy: Callable[[], bool]) -> None:
    while True:
        time.sleep(EVERY if reconcile(is_busy) else PAUSE)


class Resting:
    """Sleeps at each call, nine times as long as the work since the last call took.

    If due schedules are fired then, the sleep goes on until that is done.
    """

    def __init__(self, is_busy: Callable[[], bool]) -> None:
        self._is_busy = is_busy
        self._rested_at = time.monotonic()

    def __call__(self) -> None:
        worked = time.monotonic() - self._rested_at
        time.sleep(worked * (1 - SHARE) / SHARE)
        until = time.monotonic() + BUSY_MAX
        while self._is_busy() and time.monotonic() < until:
            time.sleep(BUSY_PAUSE)
        self._rested_at = time.monotonic()


def reconcile(is_busy: Callable[[], bool]) -> bool:
    """Compare once; return False if it has to be tried again soon. No error leaves this."""
    begun = time.monotonic()
    try:
        found = reconciling.reconcile(Resting(is_busy))
        event(logger, "ledger_reconciled", seconds=round(time.monotonic() - begun, 1), **found)
    except Exception as error:
        if is_away(error) or was_ended(error):  # the ticks report it
            logger.debug("reconcile_failed", exc_info=True)
            return False
        logger.exception("reconcile_failed")
    finally:
        connection.close()
    return True
