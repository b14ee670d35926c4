"""The Celery scheduler that beat runs: every tick asks the ledger for due work.

`celery -A config beat` builds it (settings.CELERY_BEAT_SCHEDULER) and calls `tick` for ever. Any
number of beats may run: each step locks the rows it works on, and skips rows that others have
locked. A beat keeps no schedule in memory.
"""

import logging
import time
from typing import Any

from celery import beat
from django.conf import settings
from django.db import Error, connection

from scheduling.beat import upkeep
from scheduling.beat.patient import REDIS_AWAY, Bell
from scheduling.beat.tick import Tick
from scheduling.logs import event
from scheduling.models import Priority
from scheduling.postgres import silence
from scheduling.postgres.sql import going_on, is_away, is_conflict, was_ended
from scheduling.runs.hints import Lane
from scheduling.schedules import from_code

logger = logging.getLogger(__name__)

TICK_MIN = 0.008  # seconds from one tick to the next: schedules that come due share a tick
SILENT_AFTER = 6.0  # seconds without an answer after which a connection to the ledger is closed
PAUSE_MIN, PAUSE_MAX = 0.25, 5.0  # seconds between tries while a service is away


class Scheduler(beat.Scheduler):
    """Celery's face of beat; it overrides `tick` and never uses Celery's heap."""

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        self.work = Tick(Lane(str(app.conf.task_default_queue), Priority.MEDIUM))
        self._bell = Bell()
        self._next_in = 0.0  # seconds
        self._pause = 0.0
        super().__init__(app, *args, **kwargs)

    def setup_schedule(self) -> None:
        """Begin: every schedule is a row already; `migrate` writes the schedules of code."""
        silence.waits.watch(seconds=SILENT_AFTER)
        self.work.silence.heard()
        self._compare_with_code()
        upkeep.begin(lambda: self.work.busy)

    def _compare_with_code(self) -> None:
        """Warn if the schedules of this beat's code are not as the ledger has them."""
        try:
            with silence.waits, going_on(logger, "code_schedules_differ"):
                done = from_code.compare()
                lines = [*done.lines, *done.left]
                if lines:
                    event(logger, "code_schedules_differ", level=logging.WARNING, count=len(lines),
                          first=lines[0], advice="manage.py schedule sync")  # fmt: skip
        except Error:  # if the database is away, the first tick reports it
            connection.close()

    def tick(self, *_: Any, **__: Any) -> float:
        """Do all due work, then sleep until the next instant, a ring, or a second has passed.

        A service that is away never ends the process. While the database is away, this logs, pauses
        and tries again. While Redis is away, every step goes on that does not need it.

        Returns:
            0: the sleep is over already, as a ring must be able to end it.
        """
        begun = time.monotonic()
        seconds = max(self._seconds_until_next(), begun + TICK_MIN - time.monotonic())
        if seconds > 0:
            for waited in self._bell.wait(seconds):
                self.work.lookout.heard(waited)
        return 0

    def _seconds_until_next(self) -> float:
        publisher = self.work.publisher
        try:
            self.run_once()
        except REDIS_AWAY as error:
            publisher.broker.missed(error)
            return self._next_in if error is publisher.error else PAUSE_MAX
        except Exception as error:
            connection.close()
            if is_conflict(error):
                return self._backed_off("conflict_retried", error, level=logging.WARNING)
            if is_away(error) or was_ended(error):
                # A warning, as in a worker: it can be waited out, and `health` reports the beats.
                return self._backed_off("database_away", error, level=logging.WARNING)
            logger.exception("tick_failed")
            return self._backed_off("tick_failed", None)
        self._pause = 0.0
        return self._next_in

    def run_once(self) -> float:
        """Run one tick; return the seconds until there may be more work, at most one.

        Raises:
            one of REDIS_AWAY: Redis is away; the work that does not need it is done.
        """
        self._next_in = self.work.run()
        if (error := self.work.publisher.error) is not None:
            raise error
        return self._next_in

    def _backed_off(self, name: str, error: object, level: int = logging.ERROR) -> float:
        self._pause = min(max(self._pause * 2, PAUSE_MIN), PAUSE_MAX)
        event(logger, name, level=level, error=error, pause=self._pause)
        return self._pause

    def should_sync(self) -> bool:
        return False

    def close(self) -> None:
        """Close nothing: Celery calls this from its signal handler, in the midst of anything."""

    @property
    def info(self) -> str:
        return f"    . ledger -> {settings.DATABASES['default']['NAME']}"
