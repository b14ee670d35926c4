"""The thread of a worker's parent that watches the machine's load and the worker's progress."""

import logging
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import Error

from scheduling.worker_process import process_of
from scheduling.workers import stopping
from scheduling.workers.leases import active_requests, running_here
from scheduling.workers.liveness import LOOK_EVERY, Liveness
from scheduling.workers.load_guard import LoadGuard

logger = logging.getLogger(__name__)

FIRST_LOOK = 0.1  # seconds of which the first figure of the CPU is


class Watch:
    """Looks every two seconds; replaces the worker's process if it is stuck."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._intake = process_of(worker.app).intake
        self._liveness = Liveness(worker)
        self._looked = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._live, name="watch", daemon=True).start()
        self._looked.wait(5)  # before the first message is asked for

    def _live(self) -> None:
        guard, pause = LoadGuard(self._intake), FIRST_LOOK
        while True:
            time.sleep(pause)
            try:
                guard.look()
                if self._looked.is_set() and (why := self._liveness.stuck()):
                    self._start_anew(why)
            except Exception:
                logger.exception("watch_error")
            self._looked.set()
            pause = min(LOOK_EVERY, settings.STUCK_AFTER.total_seconds() / 5 or LOOK_EVERY)

    def _start_anew(self, why: str) -> None:
        """Wait for runs to end, as a shutdown would, hand back the rest, and restart.

        A worker that takes a message meanwhile is not stuck: it goes on.
        """
        taken = self._intake.taken
        self._intake.close("restart", "about to restart")
        until = time.monotonic() + settings.SHUTDOWN_GRACE.total_seconds()
        while active_requests() and time.monotonic() < until:
            time.sleep(0.1)
            if self._intake.taken != taken:
                self._intake.reopen("restart")
                return
        running, overlap = list(running_here().values()), stopping.OVERLAP
        if stopping.can_stop_one(self._worker):
            # If the ledger cannot be asked, their leases bring them back.
            with suppress(Error):
                running, overlap = stopping.stop_running(running), timedelta(0)
        stopping.hand_back(running, "its worker was stuck and restarts", overlap)
        stopping.start_anew(self._worker, why)
