"""The public face for apps of jobs: enqueue a job, and read the current run from inside."""

from datetime import datetime
from functools import partial, wraps
from typing import Any

from celery.exceptions import Ignore, Retry
from django.db import transaction

from scheduling.base_job import BaseJob
from scheduling.errors import PermanentError, RunCancelled
from scheduling.execution.attempts import call_body, enter, shielded
from scheduling.execution.tracing import traced
from scheduling.registry import encode
from scheduling.runs.enqueueing import Call, enqueue, enqueue_many
from scheduling.runs.running import CurrentRun, current, current_run
from scheduling.task_options import instant_or_length

__all__ = [
    "Call",
    "CurrentRun",
    "Job",
    "PermanentError",
    "RunCancelled",
    "current_run",
    "enqueue",
    "enqueue_many",
]


class Job(BaseJob):
    """The task class of the app: plain `@shared_task` functions are Jobs (see `BaseJob`)."""

    abstract = True
    Request = "scheduling.workers.requests:HintRequest"

    @property
    def __trace__(self) -> Any:
        return self.__dict__.get("_tracer")

    @__trace__.setter
    def __trace__(self, tracer: Any) -> None:
        self.__dict__["_tracer"] = tracer and traced(self, tracer)
        for name in ("on_failure", "on_retry"):
            if tracer and name not in vars(self):
                setattr(self, name, shielded(self, getattr(self, name)))

    @property
    def override_max_retries(self) -> int:
        """The `max_retries` of a `retry(max_retries=...)`, which Celery keeps for `autoretry_for`.

        Celery keeps it on the task, so that later executions find it; here each execution has its
        own.
        """
        running = current()
        if running is None or running.max_retries is None:
            raise AttributeError("override_max_retries")
        return running.max_retries

    @override_max_retries.setter
    def override_max_retries(self, value: int | None) -> None:
        if (running := current()) is not None:
            running.max_retries = value

    @override_max_retries.deleter
    def override_max_retries(self) -> None:
        self.override_max_retries = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.enter_by_call(cls)

    @staticmethod
    def enter_by_call(job_class: "type[Job]") -> None:
        """Let a call of such a job begin its run, also if the class has its own `__call__`.

        Its `__call__` may call `run` itself, and never the `__call__` of `Job`.
        """
        call: Any = job_class.__call__
        if getattr(call, "begins_runs", False):
            return

        @wraps(call)
        def begin(self: Job, *args: Any, **kwargs: Any) -> Any:
            running = enter(self)
            if running is None:
                return call(self, *args, **kwargs)
            return call_body(self, running, args, kwargs, partial(call, self))

        begin.begins_runs = True  # type: ignore[attr-defined]
        job_class.__call__ = begin  # type: ignore[method-assign]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        running = enter(self)
        if running is None:
            return super().__call__(*args, **kwargs)
        return call_body(self, running, args, kwargs, self.run)

    __call__.begins_runs = True  # type: ignore[attr-defined]

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: Exception | None = None,
        throw: bool = True,
        eta: datetime | None = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Any:
        """Ask for another attempt (see Celery's); it becomes one when this attempt is finished.

        If the schedule or the enqueuing code gave the run its own `max_attempts`, the run is not
        retried beyond that, even if `max_retries` allows it.
        """
        if isinstance(exc, PermanentError):
            raise exc  # `autoretry_for=(Exception,)` would try it again
        running = current()
        if running is not None and running.claimed and running.claimed.max_attempts is not None:
            max_retries = self._bounded(running.claimed.max_attempts, max_retries)
        if running is not None and str(running.id) == self.request.id:
            # An error from here fails this attempt; from within Celery's code, the run for good.
            instant_or_length(countdown)
            running.asked = options
        try:
            return super().retry(args, kwargs, exc, throw, eta, countdown, max_retries, **options)
        except Retry:
            raise
        except BaseException:
            if running is not None and running.job.name == self.name:
                running.exhausted = True
            raise

    def on_replace(self, sig: Any) -> Any:
        """Remember the replacement of this run (see Celery's); `finish` writes it."""
        running = current()
        if running is None or not running.tracked or str(running.id) != self.request.id:
            return super().on_replace(sig)
        running.replacement = encode(sig)
        raise Ignore("Replaced by new task")

    def add_to_chord(self, sig: Any, lazy: bool = False) -> Any:
        """Add a part to the chord that this run is a part of (see Celery's).

        It is written when the run succeeds, so an attempt that fails has added nothing. With `lazy`
        it counts at once, as the job itself sends it.
        """
        running = current()
        if lazy or running is None or not running.tracked or str(running.id) != self.request.id:
            with transaction.atomic():
                return super().add_to_chord(sig, lazy)  # type: ignore[call-overload]
        if not self.request.chord:
            raise ValueError("Current task is not member of any chord")
        promised = sig.freeze()
        running.added += (encode(sig),)
        return promised

    def _bounded(self, max_attempts: int, max_retries: int | None) -> int:
        wanted = self.max_retries if max_retries is None else max_retries
        return max_attempts - 1 if wanted is None else min(max_attempts - 1, wanted)
