"""Tasks as projects have them: with base classes of their own and of Celery's, not Jobs."""

from typing import Any

from celery import Task, current_app, shared_task
from celery.contrib.abortable import AbortableTask
from celery.worker.request import Request

from scheduling.jobs import current_run

seen: list[Any] = []  # calls in a test's own process


class OwnRequest(Request):
    """A request class of the project's own."""


class Plain(Task):  # type: ignore[type-arg]
    """A base class that only adds to Celery's."""

    abstract = True
    greeting = "hello"
    Request = "tests.jobs.bases:OwnRequest"

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        seen.append(("on_success", retval))


class Calls(Task):  # type: ignore[type-arg]
    """Its `__call__` calls `run` itself, as many do to open a context."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        seen.append(("entered", args))
        try:
            return self.run(*args, **kwargs)
        finally:
            seen.append("left")


class CallsSuper(Task):  # type: ignore[type-arg]
    """Its `__call__` calls Celery's."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        seen.append(("entered", args))
        return super().__call__(*args, **kwargs)


class Slotted(Task):  # type: ignore[type-arg]
    """A base class with little room."""

    __slots__ = ()


class Registering(type):
    """A metaclass of the project's own."""


class WithMetaclass(Task, metaclass=Registering):  # type: ignore[type-arg]
    """A base class of another kind of class."""


def told(self: Any, number: int, fail: int = 0) -> list[Any]:
    """Return the task's own view of itself; fail the first `fail` times."""
    run = current_run()
    assert run is not None
    seen.append((number, self.request.id == str(run.id), self.request.retries))
    if self.request.retries < fail:
        raise ConnectionError("down")
    return [number, run.attempt]


BASES: tuple[type, ...] = (
    Task, Plain, Calls, CallsSuper, AbortableTask, Slotted, WithMetaclass,
)  # fmt: skip
decorated: dict[type, Any] = {
    base: shared_task(bind=True, base=base, name=f"tests.jobs.bases.{base.__name__}")(told)
    for base in BASES
}


class ByClass(Plain):
    """A task that is a class, registered by hand."""

    name = "tests.jobs.bases.by_class"

    def run(self, number: int, fail: int = 0) -> Any:
        return told(self, number, fail)


class ByCall(Task):  # type: ignore[type-arg]
    """A task that is a class with no `run`."""

    name = "tests.jobs.bases.by_call"

    def __call__(self, number: int, fail: int = 0) -> Any:
        return told(self, number, fail)


by_class = current_app.register_task(ByClass())
by_call = current_app.register_task(ByCall)


@shared_task(bind=True, base=AbortableTask)
def until_aborted(self: Any, path: str) -> str:
    """Go on until it is aborted."""
    import time

    from tests.jobs.tasks import note

    note(path, "begun")
    while not self.is_aborted():
        time.sleep(0.05)
    note(path, "aborted")
    return "aborted"
