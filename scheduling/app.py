"""The Celery app class: nothing for a later time leaves for the broker."""

from datetime import datetime
from typing import Any

from celery import Celery
from celery.result import AsyncResult

from scheduling import load_limits as load_limits  # `celery control` knows its command by this


class App(Celery):
    """A Celery app whose tasks are Jobs and whose countdowns and ETAs are rows in the ledger."""

    task_cls = "scheduling.jobs:Job"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps["worker"].add("scheduling.workers:LeaseKeeper")

    def send_task(  # type: ignore[override]
        self,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: float | None = None,
        eta: datetime | None = None,
        **options: Any,
    ) -> AsyncResult[Any]:
        """Send a plain message, or, with `countdown` or `eta`, write a run (see Celery's).

        A task that sends itself again under its own id (`retry`, `replace`) sends nothing: what it
        wants is remembered, and becomes the run's next attempt when this one is finished.
        """
        from scheduling.enqueueing import enqueue_message
        from scheduling.running import current

        running = current()
        if running is not None and options.get("task_id") == str(running.id):
            if not running.can_become_a_run(options):
                return super().send_task(name, args, kwargs, countdown, eta, **options)
            running.ask_again(name, args, kwargs, countdown, eta, options)
        elif countdown is not None or eta is not None:
            run = enqueue_message(self, name, args, kwargs, countdown, eta, options)
            options["task_id"] = str(run.id)
        else:
            return super().send_task(name, args, kwargs, **options)
        result_class = options.get("result_cls") or self.AsyncResult
        return result_class(options["task_id"])
