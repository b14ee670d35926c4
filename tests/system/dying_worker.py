"""`celery -A tests.system.dying_worker worker`: its children die at the end of a first attempt.

DIE_AT says where: `before` the first statement of `finish`, or `inside` its transaction, when the
follow-ups are written and not yet committed.
"""

import os
import signal
from typing import Any

import django

from config.celery import app

django.setup()

from scheduling.execution import tracing  # noqa: E402 (its models need the apps)
from scheduling.runs import follow_ups  # noqa: E402 (its models need the apps)

__all__ = ["app"]

finish, count_part = tracing.finish, follow_ups.count_part  # type: ignore[attr-defined]
first: list[bool] = [False]


def die_before(run_id: Any, attempt: int, outcome: Any) -> bool:
    first[0] = attempt == 1
    if first[0] and os.environ["DIE_AT"] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    return bool(finish(run_id, attempt, outcome))


def die_inside(*args: Any) -> None:
    count_part(*args)
    if first[0] and os.environ["DIE_AT"] == "inside":
        os.kill(os.getpid(), signal.SIGKILL)


tracing.finish = die_before  # type: ignore[attr-defined]
follow_ups.count_part = die_inside  # type: ignore[assignment]
