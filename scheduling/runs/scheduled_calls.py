"""Run now: writes a run of a schedule beside its plan; the columns serve backfills as well."""

from typing import Any

from django_celery_beat.models import PeriodicTask
from kombu.utils.json import loads

from scheduling.errors import EnqueueError
from scheduling.models import Origin, Run
from scheduling.registry import check_call, decode_error
from scheduling.runs.inserting import insert_run
from scheduling.runs.message_options import options_with
from scheduling.runs.options import destination, limit, start
from scheduling.task_options import asked_by


def columns_of(schedule: PeriodicTask) -> dict[str, Any]:
    """Return the columns of a run of the schedule that do not depend on when it runs.

    Raises:
        EnqueueError: the task is unknown here, or the schedule's arguments cannot be read or fit,
            or the call can go to no queue.
    """
    args, kwargs = schedule.args or "[]", schedule.kwargs or "{}"
    if problem := decode_error(args, kwargs):
        raise EnqueueError(f"schedule {schedule.name!r}: {problem}")
    call = loads(args), loads(kwargs)
    check_call(schedule.task, *call)
    asked = asked_by(schedule)
    if schedule.expire_seconds is not None:
        asked["expires"] = schedule.expire_seconds
    policy = getattr(schedule, "policy", None)
    return {
        **destination(schedule.task, *call, asked),
        "schedule_id": schedule.pk,
        "schedule_name": schedule.name,
        "task": schedule.task,
        "args": args,
        "kwargs": kwargs,
        "options": options_with(schedule.headers or ""),
        "max_attempts": policy and policy.max_attempts,
    }


def run_now(schedule: PeriodicTask, *, by: str) -> Run:
    """Write a run of the schedule's task that may start at once, beside its plan.

    Raises:
        EnqueueError: as for `columns_of`.
    """
    policy = getattr(schedule, "policy", None)
    return insert_run(
        {
            **columns_of(schedule),
            **start(None, None),
            **limit("deadline", policy and policy.deadline_after),
            "origin": Origin.ADHOC,
            "enqueued_by": by,
        }
    )
