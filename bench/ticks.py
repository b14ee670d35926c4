"""The measured schedulers with a clock on each tick, for `celery beat --scheduler`.

Both write the milliseconds of each tick, without the sleep after it, to the file $BENCH_TICKS.
"""

import os
import time
from typing import Any

from django_celery_beat.schedulers import DatabaseScheduler

from scheduling.beat import Scheduler


def _note(started: float) -> None:
    with open(os.environ["BENCH_TICKS"], "a") as file:
        file.write(f"{(time.perf_counter() - started) * 1000}\n")


class Truebeat(Scheduler):
    def run_once(self) -> float:
        started = time.perf_counter()
        seconds = super().run_once()
        _note(started)
        return seconds


class Database(DatabaseScheduler):  # type: ignore[misc]
    def tick(self, *args: Any, **kwargs: Any) -> float:
        started = time.perf_counter()
        seconds: float = super().tick(*args, **kwargs)
        _note(started)
        return seconds
