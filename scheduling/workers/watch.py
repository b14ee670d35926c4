"""The thread of a worker's parent that watches: the machine's load, and the worker's progress."""

import logging
import threading
import time
from typing import Any

from django.conf import settings

from scheduling import intake
from scheduling.workers import stopping
from scheduling.workers.leases import active_requests, running_here
from scheduling.workers.liveness import Liveness
from scheduling.workers.load_guard import LoadGuard

logger = logging.getLogger(__name__)

LOOK_EVERY = 2.0  # seconds


class Watch:
    """Looks every two seconds; ends the worker's process, for a new one, where it is stuck."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._guard = LoadGuard()
        self._liveness = Liveness(worker)

    def start(self) -> None:
        self._guard.look()  # before the first message is asked for
        threading.Thread(target=self._live, name="watch", daemon=True).start()

    def _live(self) -> None:
        pause = min(LOOK_EVERY, settings.STUCK_AFTER.total_seconds() / 5)
        while True:
            time.sleep(pause)
            try:
                self._guard.look()
                if why := self._liveness.stuck():
                    self._start_anew(why)
            except Exception:
                logger.exception("watch_error")

    def _start_anew(self, why: str) -> None:
        """Let what runs end, as a shutdown would, hand back the rest, and begin again."""
        intake.close("restart", "about to restart")
        until = time.monotonic() + settings.SHUTDOWN_GRACE.total_seconds()
        while active_requests() and time.monotonic() < until:
            time.sleep(0.1)
        running = list(running_here().values())
        if stopping.can_stop_one(self._worker):
            running = stopping.stop_running(running)
        stopping.hand_back(running, "its worker was stuck and restarts")
        stopping.start_anew(self._worker, why)
