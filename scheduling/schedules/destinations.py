"""Where the runs of a schedule go: its queue and priority, and when they expire."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db import DatabaseError
from django_celery_beat.models import PeriodicTask

from scheduling.errors import EnqueueError
from scheduling.registry import decode_call
from scheduling.task_options import CallOptions, asked_by, options_of


def sent_to(schedule: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> CallOptions:
    """Return the queue and the priority of a schedule's runs, and when they expire.

    Args:
        schedule: a PeriodicTask, or a due plan with the same columns.

    Raises:
        EnqueueError: no queue can take them.
    """
    return options_of(schedule.task, args, kwargs, asked_by(schedule))


def refuse_without_queue(schedule: PeriodicTask) -> None:
    """Raise EnqueueError if no queue can take the schedule's runs.

    Another check refuses arguments that cannot be read.
    """
    try:
        call = decode_call(schedule.args or "[]", schedule.kwargs or "{}")
    except EnqueueError:
        call = [], {}
    sent_to(schedule, *call)


def where_it_goes(schedule: PeriodicTask) -> str:
    """Return in words the queue of the schedule's runs and when they expire, or the problem."""
    try:
        sent = sent_to(schedule, *decode_call(schedule.args or "[]", schedule.kwargs or "{}"))
    except (EnqueueError, DatabaseError) as error:
        return f"nowhere: {error}"
    own = sent.expires if schedule.expire_seconds is None else schedule.expire_seconds
    seconds = own.total_seconds() if isinstance(own, timedelta) else own
    words = f"queue {sent.queue}, priority {sent.priority.label}"
    if isinstance(seconds, datetime):
        return f"{words}; useless after {seconds:%Y-%m-%d %H:%M:%S} UTC"
    return words if seconds is None else f"{words}; useless {seconds:,g} s after it was due"
