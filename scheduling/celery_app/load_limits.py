"""The load limits above which this worker takes no work, and the command to change them."""

from typing import Any

from celery.worker.control import control_command
from django.conf import settings

FIGURES = ("load", "memory", "cpu")

_changed: dict[str, float] = {}


def limits() -> dict[str, float]:
    """Return the limit of each figure, as set or as changed since; 0 means no limit."""
    return {name: float(getattr(settings, f"MAX_{name.upper()}")) for name in FIGURES} | _changed


@control_command(
    args=[("figure", str), ("limit", float)], signature="<load|memory|cpu> <limit, 0 for none>"
)
def load_limit(state: Any, figure: str, limit: float) -> dict[str, str]:
    """Change a limit of the workers' load guards until they restart."""
    if figure not in FIGURES:
        return {"error": f"unknown figure {figure!r}: give one of {', '.join(FIGURES)}"}
    _changed[figure] = float(limit)
    return {"ok": f"the limit of {figure} is {float(limit):g}"}
