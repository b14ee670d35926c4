"""Truebeat's scheduler with a clock on each tick, for `celery beat --scheduler`."""

import time

from bench.ticks import note
from scheduling.beat.scheduler import Scheduler


class Truebeat(Scheduler):
    def run_once(self) -> float:
        started = time.perf_counter()
        seconds = super().run_once()
        note(started)
        return seconds
