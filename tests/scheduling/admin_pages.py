"""Shared helpers for tests of the admin's pages."""

from datetime import datetime
from typing import Any

from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django_celery_beat.models import PeriodicTask

from scheduling.models import FINAL, Origin, Run, State


def grant(*permissions: str) -> User:
    """Return a member of staff with these permissions alone."""
    user = User.objects.create_user("clerk", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return user


def texts(response: Any) -> list[str]:
    """Return the messages that a page shows."""
    return [str(message) for message in get_messages(response.wsgi_request)] or [
        str(message) for message in response.context["messages"]
    ]


def planned_run(schedule: PeriodicTask, state: State, due_at: datetime, **columns: Any) -> Run:
    """Write the run of one of the schedule's occurrences, as beat would have."""
    final = due_at if state in FINAL else None
    return Run.objects.create(
        **{
            "schedule_id": schedule.pk,
            "schedule_name": schedule.name,
            "origin": Origin.SCHEDULE,
            "task": schedule.task,
            "queue": "celery",
            "due_at": due_at,
            "run_at": due_at,
            "state": state,
            "finished_at": final,
            **columns,
        }
    )
