"""`celery -A tests.system.freezing_beat beat`: a beat that freezes once, with due plans locked."""

import os
import signal
from typing import Any

import django

from config.celery import app

django.setup()

from scheduling.beat import firing as original  # noqa: E402 (its models need the apps)

__all__ = ["app"]

firing: Any = original
decide = firing.decide


def freeze_first(*arguments: Any) -> Any:
    firing.decide = decide
    os.kill(os.getpid(), signal.SIGSTOP)
    return decide(*arguments)


firing.decide = freeze_first
