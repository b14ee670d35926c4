"""`celery -A tests.system.freezing_reader beat`: it freezes once, before it reads due plans."""

import os
import signal
from collections.abc import Generator
from typing import Any

import django

os.environ["PREPARED_STATEMENTS"] = "off"  # then the question is one step, and not two

from config.celery import app

django.setup()

from django.db import connection  # noqa: E402 (the settings are read by now)

from scheduling.beat import firing as original  # noqa: E402 (its models need the apps)

__all__ = ["app"]

firing: Any = original
run_prepared = firing.run_prepared


def freeze_first(sql: str, parameters: Any) -> Any:
    firing.run_prepared = run_prepared
    raw: Any = connection.connection
    wait, raw.wait = raw.wait, lambda steps, *more: wait(asked_then_frozen(steps), *more)
    try:
        return run_prepared(sql, parameters)
    finally:
        raw.wait = wait


def asked_then_frozen(steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Do as psycopg's steps say, and freeze once the question is sent and before its answer."""
    wanted = next(steps)
    os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        try:
            wanted = steps.send((yield wanted))
        except StopIteration as end:
            return end.value


firing.run_prepared = freeze_first
