"""The Celery app class: a call of a task writes a run in place of a message."""

from datetime import datetime
from typing import Any

from celery import Celery
from celery.apps.beat import Beat as CeleryBeat
from celery.result import AsyncResult
from celery.signals import worker_process_init
from celery.utils.imports import symbol_by_name
from click import ClickException
from kombu.utils.objects import cached_property

# `celery control` knows its command by this.
from scheduling.celery_app import load_limits as load_limits
from scheduling.celery_app import sending
from scheduling.celery_internals import exec_options, make_ids_by
from scheduling.errors import EnqueueError
from scheduling.ids import uuid7
from scheduling.worker_process import WorkerProcess

SCHEDULER = "scheduling.beat:Scheduler"

make_ids_by(uuid7)


@worker_process_init.connect
def forget_lost_connection(**_: Any) -> None:
    """Drop, in a new child, a connection that its parent has lost.

    Celery would close the connection's file in each new child, and fail with a traceback because
    the file is gone. This handler is connected before Celery connects its own.
    """
    from django.db import connection

    raw: Any = connection.connection
    if raw is not None and raw.closed:
        connection.connection = None


class Beat(CeleryBeat):
    """`celery beat`, which runs no other scheduler than the ledger's: that would do all twice."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        sending.set_up()  # not done yet if CELERY_SKIP_CHECKS is set
        wanted = symbol_by_name(SCHEDULER)
        given: Any = self.scheduler_cls  # type: ignore[attr-defined]
        try:
            is_the_ledgers = issubclass(symbol_by_name(given), wanted)
        except (ImportError, AttributeError, ValueError, TypeError):
            is_the_ledgers = False
        if not is_the_ledgers:
            raise ClickException(
                f"beat was started with the scheduler {given!r}, which does not read the ledger:"
                f" start it without -S, and set CELERY_BEAT_SCHEDULER = {SCHEDULER!r}."
            )


class App(Celery):
    """A Celery app whose tasks are Jobs, and whose calls of them are rows in the ledger."""

    task_cls = "scheduling.jobs:Job"
    registry_cls = "scheduling.celery_app.bases:JobRegistry"
    control_cls = "scheduling.celery_app.control:Control"
    amqp_cls = "scheduling.broker.connections:AMQP"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.worker_process = WorkerProcess()  # a worker puts its own here
        super().__init__(*args, **kwargs)
        self.steps["worker"].add("scheduling.workers.steps:LedgerStep")
        self.steps["consumer"].add("scheduling.workers.rate_limits:RateLimits")

    @cached_property
    def Beat(self) -> Any:
        return self.subclass_with_self(Beat)

    def create_task_cls(self) -> Any:
        """Create the app's base class of tasks (see Celery's): a Job with any `task_cls`."""
        from scheduling.celery_app.bases import job_class

        return self.subclass_with_self(
            job_class(symbol_by_name(self.task_cls)), name="Task", attribute="_app",
            keep_reduce=True, abstract=True,
        )  # fmt: skip

    def _task_from_fun(self, fun: Any, *args: Any, **options: Any) -> Any:
        """Make a task (see Celery's), and let it answer to its old names too."""
        return self._with_aliases(super()._task_from_fun(fun, *args, **options))

    def register_task(self, task: Any, **options: Any) -> Any:
        """Register a task that is a class (see Celery's), under its old names too."""
        return self._with_aliases(super().register_task(task, **options))

    def _with_aliases(self, task: Any) -> Any:
        for alias in getattr(task, "aliases", ()):
            self._tasks.setdefault(alias, task)  # type: ignore[attr-defined]
        return task

    def send_task(  # type: ignore[override]
        self,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: float | None = None,
        eta: datetime | None = None,
        **options: Any,
    ) -> AsyncResult[Any]:
        """Write a run, in the caller's own transaction (see Celery's for the options).

        Only a call of a task in UNTRACKED_TASKS, without a delay, is a plain message. A task that
        sends itself again under its own id (`retry`) sends no message: the call is remembered, and
        becomes the run's next attempt when this attempt is finished.
        """
        sending.set_up()
        from scheduling.runs.follow_ups import sender
        from scheduling.runs.running import current
        from scheduling.task_options import CeleryCall

        if options.get("unique_key") is not None and sender() is None:
            raise EnqueueError(
                f"task {name}: unique_key is an option of scheduling.jobs.enqueue, which can say"
                f" whether there was such a run; not of apply_async and send_task."
            )
        running = current()
        if sender() is None and running and options.get("task_id") == str(running.id):
            if not running.can_become_a_run:
                return super().send_task(name, args, kwargs, countdown, eta, **options)
            running.ask_again(CeleryCall(name, args, kwargs, countdown, eta, options))
            return self._promise(options)
        now = sender() is None and countdown is None and eta is None
        if now and sending.stays_plain(name, options):
            return super().send_task(name, args, kwargs, **options)
        options = self._with_family({**self._declared(name, options), **options})
        call = CeleryCall(name, args, kwargs, countdown, eta, options)
        run_id = sending.write_run(self, call)
        promised = self._promise({**options, "task_id": str(run_id)})
        parent = self.current_worker_task
        if parent and sender() is None and options.get("add_to_parent", True):
            parent.add_trail(promised)
        return promised

    def _promise(self, options: dict[str, Any]) -> AsyncResult[Any]:
        promised: AsyncResult[Any] = (options.get("result_cls") or self.AsyncResult)(
            options["task_id"]
        )
        promised.ignored = options.get("ignore_result")  # type: ignore[assignment]
        return promised

    def _declared(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        """Return the options that the task itself declares, if Celery has not read them."""
        task: Any = None if "task_type" in options else self.tasks.get(name)
        if task is None:
            return {}
        declared = exec_options(task)
        return {"task_type": task, **{k: v for k, v in declared.items() if v is not None}}

    def _with_family(self, options: dict[str, Any]) -> dict[str, Any]:
        """Name the task or the run that sends this, as Celery's messages do."""
        from scheduling.runs.follow_ups import sender

        sending, parent = sender(), self.current_worker_task
        root_id: str | None
        parent_id: str | None
        if sending is not None:
            root_id, parent_id = sending.root_id, str(sending.id)
        elif parent:
            root_id, parent_id = parent.request.root_id or parent.request.id, parent.request.id
            if self.conf.task_inherit_parent_priority:
                inherited = (parent.request.delivery_info or {}).get("priority")
                options = {"priority": inherited, **options}
        else:
            return options
        return {
            **options,
            "root_id": options.get("root_id") or root_id,
            "parent_id": options.get("parent_id") or parent_id,
        }
