"""Tasks with any base class are Jobs: claimed, with their arguments and their own behaviour."""

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, Task, current_app
from celery.app.registry import TaskRegistry
from celery.app.trace import reset_worker_optimizations, setup_worker_optimizations
from celery.contrib.abortable import AbortableAsyncResult, AbortableTask
from django_celery_results.models import TaskResult

from scheduling.base_job import BaseJob
from scheduling.celery_app.app import App
from scheduling.celery_app.bases import JobRegistry
from scheduling.jobs import Job
from scheduling.models import Run, State
from scheduling.workers.requests import HintRequest
from tests.jobs import bases
from tests.scheduling.child import deliver, forget_tracers, hint
from tests.scheduling.ledger import run

pytestmark = pytest.mark.django_db(transaction=True)

NAMES = (
    *(f"tests.jobs.bases.{base.__name__}" for base in bases.BASES),
    "tests.jobs.bases.by_class",
    "tests.jobs.bases.by_call",
)


@pytest.fixture(autouse=True)
def _as_in_a_worker() -> Iterator[None]:
    """Patch Celery's Task as a worker's child does, which tasks with a `__call__` rely on."""
    setup_worker_optimizations(current_app)
    bases.seen.clear()
    yield
    reset_worker_optimizations(current_app)
    forget_tracers()


@pytest.fixture
def apps() -> Iterator[Any]:
    """Make apps that no other test sees."""
    made: list[Celery] = []

    def make(**options: Any) -> App:
        made.append(App("own", set_as_current=False, fixups=[], **options))
        return made[-1]  # type: ignore[return-value]

    yield make
    for app in made:
        app.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_hint_runs_it_once_with_its_runs_arguments(name: str) -> None:
    made = run(State.QUEUED, task=name, args="[7]")
    hint(made)
    hint(made)
    made.refresh_from_db()
    assert made.state == State.SUCCEEDED, made.errors
    assert TaskResult.objects.get(task_id=made.pk).result == "[7, 1]"
    assert [call for call in bases.seen if call[0] == 7] == [(7, True, 0)]


@pytest.mark.parametrize("name", NAMES)
def test_one_that_fails_is_tried_again_by_default(name: str) -> None:
    made = run(State.QUEUED, task=name, args="[7, 1]")
    hint(made)
    made.refresh_from_db()
    assert (made.state, made.attempt, made.failures) == (State.SCHEDULED, 2, 1)
    Run.objects.filter(pk=made.pk).update(run_at=made.due_at)
    made.refresh_from_db()
    hint(made)
    made.refresh_from_db()
    assert made.state == State.SUCCEEDED, made.errors
    assert [call for call in bases.seen if call[0] == 7] == [(7, True, 0), (7, True, 1)]


@pytest.mark.parametrize("name", NAMES)
def test_a_hint_of_no_run_calls_nothing(name: str) -> None:
    made = run(State.SUCCEEDED, task=name, args="[7]")
    hint(made)
    assert bases.seen == []


def test_it_is_still_what_it_was() -> None:
    for base, proxy in bases.decorated.items():
        task = current_app.tasks[f"tests.jobs.bases.{base.__name__}"]
        assert isinstance(task, base)
        assert isinstance(task, BaseJob)
        assert type(task).__mro__.index(base) < type(task).__mro__.index(object)
        assert type(task).__module__ == "tests.jobs.bases"
        assert pickle.loads(pickle.dumps(task)) is task  # noqa: S301
        assert proxy.name == task.name
    plain = bases.decorated[bases.Plain]
    assert plain.greeting == "hello"
    assert (plain.max_retries, plain.max_attempts) == (3, None)
    assert bases.by_class is current_app.tasks["tests.jobs.bases.by_class"]
    kind: Any = type(bases.by_class)
    assert kind.__name__ == "ByClass"
    assert isinstance(bases.decorated[AbortableTask].AsyncResult("x"), AbortableAsyncResult)


def test_its_own_hooks_and_calls_are_kept() -> None:
    hint(run(State.QUEUED, task="tests.jobs.bases.Plain", args="[7]"))
    assert bases.seen[-1] == ("on_success", [7, 1])
    bases.seen.clear()
    hint(run(State.QUEUED, task="tests.jobs.bases.Calls", args="[7]"))
    assert bases.seen == [("entered", (7,)), (7, True, 0), "left"]
    bases.seen.clear()
    hint(run(State.QUEUED, task="tests.jobs.bases.CallsSuper", args="[7]"))
    assert bases.seen == [("entered", (7,)), (7, True, 0)]


def test_its_own_request_class_takes_hints_as_well() -> None:
    request: Any = bases.decorated[bases.Plain].Request
    assert issubclass(request, HintRequest)
    assert issubclass(request, bases.OwnRequest)


def test_a_plain_message_and_a_call_run_it_too() -> None:
    task = bases.decorated[bases.Calls]
    with pytest.raises(AssertionError):  # `current_run` is None there
        task(7)
    assert bases.seen == [("entered", (7,)), "left"]
    deliver(task.name, "any id", [7])
    assert bases.seen[2] == ("entered", (7,))


class TestApps:
    def test_an_apps_own_task_class_is_a_job_and_can_be_replaced(self, apps: Any) -> None:
        app = apps(task_cls=bases.Calls)
        assert issubclass(app.Task, Job)
        assert issubclass(app.Task, bases.Calls)

        class Mine(app.Task):  # type: ignore[misc, name-defined]
            def __call__(self, *args: Any) -> Any:
                return "mine", self.run(*args)

        app.Task = Mine

        @app.task(name="mine")  # type: ignore[untyped-decorator]
        def mine(number: int) -> int:
            return number

        assert isinstance(app.tasks["mine"], Job)
        assert mine(7) == ("mine", 7)

    def test_every_way_into_the_registry_makes_a_job(self, apps: Any) -> None:
        app, other = apps(), Celery("other", set_as_current=False, fixups=[])
        task = other.register_task(bases.ByCall())
        assert not isinstance(task, Job)
        app.tasks["by key"] = task
        assert isinstance(app.tasks["by key"], Job)
        one, two = bases.ByClass(), bases.ByClass()
        app.tasks.register(one)
        app.tasks.update({"by update": two})
        assert isinstance(one, Job)
        assert isinstance(two, Job)
        assert all(isinstance(task, Job) for task in JobRegistry({"x": bases.ByCall()}).values())
        other.close()

    def test_a_task_of_another_app_is_a_job_in_ours(self, apps: Any) -> None:
        other = Celery("other", set_as_current=False, fixups=[])

        @other.task(name="shared by the other", base=bases.Calls)
        def shared(number: int) -> int:
            return number

        app = apps()
        assert isinstance(app.tasks["shared by the other"], Job)
        assert not isinstance(other.tasks["shared by the other"], Job)
        other.close()

    def test_a_class_that_allows_no_subclass_is_left_as_it_is(self, apps: Any) -> None:
        class Final(Task):  # type: ignore[type-arg]
            name = "final"

            def __init_subclass__(cls) -> None:
                raise TypeError("it is final")

        app = apps()
        app.register_task(Final())
        assert type(app.tasks["final"]) is Final
        assert isinstance(app.tasks, TaskRegistry)
