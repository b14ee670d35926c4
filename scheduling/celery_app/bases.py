"""Makes every task of the app a Job, also tasks with a base class of their own.

The claim stands in the tracer of a Job. A task with a base class of the project's own, or of
Celery's such as AbortableTask, would run unclaimed and without its arguments. So a task that comes
into the app's registry gets a class that is both: `type(name, (its class, Job), {})`. The task
keeps its behaviour: `isinstance`, attributes, a `__call__` of its own, its name in a pickle.
"""

import inspect
import types
from functools import cache
from typing import Any

from celery.app.registry import TaskRegistry
from celery.app.task import Task
from celery.local import maybe_evaluate
from celery.utils.imports import symbol_by_name


class JobRegistry(TaskRegistry):
    """Celery's registry of tasks; each that comes in becomes a Job."""

    def __init__(self, tasks: Any = ()) -> None:
        super().__init__()
        self.update(tasks)

    def __setitem__(self, name: str, task: Any) -> None:
        super().__setitem__(name, as_job(task))

    def update(self, *args: Any, **kwargs: Any) -> None:
        for name, task in dict(*args, **kwargs).items():
            self[name] = task


def as_job(task: Any) -> Any:
    """Make this task a Job, if its class allows that; return it."""
    task = maybe_evaluate(task)
    if inspect.isclass(task) or not isinstance(task, Task):
        return task
    try:
        kind: Any = type(task)
        task.__class__ = job_class(kind)
    except TypeError:  # a system check names it; no worker runs it for a hint
        return task
    return task


@cache
def job_class(base: type[Any]) -> type[Any]:
    """Return a class that is `base` and a Job.

    Raises:
        TypeError: `base` does not allow a subclass of both.
    """
    from scheduling.jobs import Job  # its modules need Django's models, which an app does not

    if issubclass(base, Job):
        return base
    if issubclass(Job, base):  # celery.Task itself
        return Job
    own: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    if base.Request != Task.Request:
        own["Request"] = _request_with(base.Request, Job.Request)
    made = types.new_class(base.__name__, (base, Job), {}, lambda names: names.update(own))
    Job.enter_by_call(made)
    return made


def _request_with(own: Any, of_job: str) -> Any:
    """Return the `Request` of a task that brings its own: that one, and the engine's.

    It is made when a worker asks for it: only a worker loads the engine's.
    """

    def request(_: Any) -> Any:
        found, hints = symbol_by_name(own), symbol_by_name(of_job)
        return found if issubclass(found, hints) else type(found.__name__, (hints, found), {})

    return property(request)
