"""`celery -A tests.system.dying_beat beat`: a beat that dies between its commit and its push."""

import os
import signal
from collections.abc import Iterable

import django

from config.celery import app

django.setup()

from scheduling.runs.hints import Broker, Hint  # noqa: E402 (its models need the apps)

__all__ = ["app"]


def die(broker: Broker, hints: Iterable[Hint]) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


Broker.push = die  # type: ignore[method-assign, assignment]
