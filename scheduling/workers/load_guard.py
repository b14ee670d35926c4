"""Stops the intake of a worker on an overloaded machine, and starts it again afterwards.

Running jobs go on. Hints stay in Redis, for workers on other machines.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import psutil

from scheduling.broker.intake import Intake
from scheduling.celery_app.load_limits import limits
from scheduling.logs import event

logger = logging.getLogger(__name__)

NAME = "load guard"
RESUME_BELOW = 0.9  # of its limit must a figure be before work is taken again
CGROUP = Path("/sys/fs/cgroup")


def measure() -> dict[str, float]:
    """Return the load average of a minute per core, and the memory and CPU in use in per cent.

    The figure of the CPU is for the time since this thread's last call.
    """
    return {
        "load": os.getloadavg()[0] / (os.cpu_count() or 1),
        "memory": max(float(psutil.virtual_memory().percent), memory_of_container(CGROUP)),
        "cpu": float(psutil.cpu_percent()),
    }


def memory_of_container(cgroup: Path) -> float:
    """Return how much of its memory limit a container uses, in per cent; 0 if it has no limit.

    Pages of files that can be dropped at any time do not count.
    """
    try:
        limit = float((cgroup / "memory.max").read_text())
        used = float((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        return 100 * (used - float(stat["inactive_file"])) / limit
    except (OSError, ValueError, KeyError, ZeroDivisionError):  # no cgroup, or "max"
        return 0.0


def excess(figures: Mapping[str, float], allowed: Mapping[str, float], *, closed: bool) -> str:
    """Return which figures are too high for work to be taken, or "".

    Where the worker is closed already, a figure must fall clearly below its limit: otherwise it
    would open and close with each job.
    """
    share = RESUME_BELOW if closed else 1.0
    return ", ".join(
        f"{name} at {figure:.2f}, limit {allowed[name]:g}"
        for name, figure in figures.items()
        if 0 < allowed[name] * share < figure
    )


class LoadGuard:
    """Measures, and closes or opens the worker's intake; all of it in one thread."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._closed = False
        psutil.cpu_percent()  # begins the first interval

    def look(self) -> None:
        allowed = limits()
        why = excess(measure(), allowed, closed=self._closed) if any(allowed.values()) else ""
        if why:
            self._intake.close(NAME, why)
        else:
            self._intake.reopen(NAME)
        if bool(why) != self._closed:
            self._closed = bool(why)
            if why:
                event(logger, "work_refused", level=logging.WARNING, why=why)
            else:
                event(logger, "work_taken_again")
