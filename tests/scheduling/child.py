"""A worker's child in this process: calls the tracer that Celery builds, as for a hint."""

from typing import Any
from unittest.mock import Mock

import pytest
from celery import current_app
from celery.app.trace import build_tracer

from scheduling import clock
from scheduling.broker.signing import ATTEMPT
from scheduling.models import Run, State
from scheduling.worker_process import Report, WorkerProcess


def hint(
    made: Run, attempt: int | None = None, *, task_id: str | None = None, **headers: Any
) -> Any:
    """Give a worker's child the hint of a run, and return the result that Celery would see."""
    name = made.task
    return deliver(
        name,
        str(made.pk) if task_id is None else task_id,
        **{ATTEMPT: attempt or made.attempt, **headers},
    )


def deliver(name: str, task_id: str, args: Any = (), kwargs: Any = None, **headers: Any) -> Any:
    job = current_app.tasks[name]
    job.__trace__ = build_tracer(job.name, job, app=current_app)
    request = {
        "id": task_id, "task": name, "hostname": "h", "is_eager": False, "delivery_info": {},
        "retries": 0, "root_id": task_id, **headers,
    }  # fmt: skip
    return job.__trace__(task_id, list(args), kwargs or {}, request)


def work(*, until: int = 100) -> list[Run]:
    """Execute due runs and the runs that follow them, in the order of ids; return them."""
    done: list[Run] = []
    due = Run.objects.filter(state__in=(State.SCHEDULED, State.QUEUED)).order_by("created_at", "id")
    while waiting := due.filter(run_at__lte=clock.now()).first():
        assert len(done) < until, "it goes on for ever"
        hint(waiting)
        done.append(waiting)
    return done


NOW: Any = {"countdown": 0}  # makes a call a run


def value_of(promised: Any) -> Any:
    return promised.get(timeout=1, disable_sync_subtasks=False)


def forget_tracers() -> None:
    for task in current_app.tasks.values():
        task.__trace__ = None


def collect_reports(monkeypatch: pytest.MonkeyPatch) -> list[Report]:
    """Make this process a worker's parent whose lease thread only collects reports."""
    reports: list[Report] = []

    def take(report: Report) -> bool:
        reports.append(report)
        return True

    thread = Mock(take=take)
    monkeypatch.setattr(current_app, "worker_process", WorkerProcess(lease_thread=thread))
    return reports
