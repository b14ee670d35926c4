"""django-celery-beat's scheduler with a clock on each tick; see bench/ticks.py."""

import time
from typing import Any

from django_celery_beat.schedulers import DatabaseScheduler

from bench.ticks import note


class Database(DatabaseScheduler):  # type: ignore[misc]
    def tick(self, *args: Any, **kwargs: Any) -> float:
        started = time.perf_counter()
        seconds: float = super().tick(*args, **kwargs)
        note(started)
        return seconds
