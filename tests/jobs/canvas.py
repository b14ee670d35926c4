"""Jobs for canvases: the results show which of them ran, with which arguments."""

from typing import Any

from celery import Task, chain, group, shared_task
from celery.exceptions import Ignore, Reject

from scheduling.jobs import Job

heard: list[tuple[str, Any]] = []


@shared_task
def plus(x: int, y: int = 1) -> int:
    return x + y


@shared_task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@shared_task(ignore_result=True)
def quiet(x: int) -> int:
    return x


@shared_task
def five() -> int:
    return 5


@shared_task
def hear(value: Any) -> Any:
    heard.append(("heard", value))
    return value


@shared_task(bind=False, base=Job, max_attempts=1)
def fail(*args: Any) -> None:
    raise ValueError("no luck")


@shared_task(bind=False, base=Job, max_attempts=1)
def leave(*args: Any) -> None:
    raise SystemExit(3)


@shared_task(bind=False, base=Job, max_attempts=1, ignore_result=True)
def fail_quietly(*args: Any) -> None:
    raise ValueError("no luck")


@shared_task(bind=True, max_retries=3)
def third_time(self: "Task[Any, Any]", x: int) -> int:
    """Succeed in the third attempt."""
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return x


@shared_task(bind=False, base=Job, max_attempts=1)
def end(how: str) -> None:
    raise {"ignore": Ignore, "reject": Reject}[how](how)


@shared_task
def told(request: Any, error: BaseException, traceback: str) -> None:
    """An errback of the newer style."""
    heard.append(("told", (request.id, request.task, repr(error), bool(traceback))))


@shared_task
def told_more(request: Any, error: BaseException, traceback: str, more: str) -> None:
    heard.append(("told", (request.id, repr(error), more)))


@shared_task(bind=True, max_retries=3)
def told_after_a_retry(self: "Task[Any, Any]", failed_id: str) -> None:
    """Bound: of the older style, so that it can be retried."""
    if not self.request.retries:
        raise self.retry(countdown=0)
    heard.append(("told", failed_id))


@shared_task(bind=False, base=Job, max_attempts=2)
def told_at_the_second_try(request: Any, error: BaseException, traceback: str) -> None:
    heard.append(("tried", request.id))
    if len(heard) < 2:
        raise ConnectionError("down")


@shared_task
def told_id(failed_id: str) -> None:
    """An errback of the older style."""
    heard.append(("told", failed_id))


@shared_task
def said(text: str) -> None:
    heard.append(("said", text))


@shared_task(bind=True)
def look(self: "Task[Any, Any]", value: Any = None) -> Any:
    request = self.request
    heard.append(("look", {name: request.get(name) for name in LOOKED_AT}))
    return value


LOOKED_AT = ("id", "root_id", "parent_id", "group", "group_index", "stamps", "headers", "tenant")


@shared_task(bind=True)
def becomes(self: "Task[Any, Any]", x: int, what: str) -> None:
    self.replace(
        {
            "one": plus.s(x, 10),
            "chain": chain(plus.s(x, 10), plus.s(100)),
            "group": group(plus.s(x, 10), plus.s(x, 20)),
            "chord": group(plus.s(x, 10), plus.s(x, 20)) | total.s(),
            "failing chain": chain(plus.s(x, 10), fail.s(), plus.s(100)),
            "failing chord": group(plus.s(x, 10), fail.s()) | total.s(),
            "chain that waits": chain(plus.s(x, 10), plus.s(100).set(countdown=60)),
            "unsendable": plus.s(x, 10).set(task_id="no uuid"),
        }[what]
    )


@shared_task(bind=True, max_retries=3)
def grows(self: "Task[Any, Any]", numbers: list[int]) -> int:
    """Add parts to its own chord, in each of its two attempts."""
    for number in numbers:
        self.add_to_chord(chain(five.si(), plus.s(number)) if number > 100 else plus.s(number, 0))
    if not self.request.retries:
        raise self.retry(countdown=0)
    return 1


@shared_task(bind=True)
def asked_priority(self: "Task[Any, Any]", *args: Any) -> Any:
    return (self.request.delivery_info or {})["priority"]


@shared_task(bind=True, max_retries=3)
def asked_priority_after_a_retry(self: "Task[Any, Any]") -> Any:
    if not self.request.retries:
        raise self.retry(countdown=0)
    return (self.request.delivery_info or {})["priority"]


@shared_task(bind=True)
def becomes_many(self: "Task[Any, Any]", count: int, queue: str) -> None:
    self.replace(group(plus.si(n, 1).set(queue=queue) for n in range(count)) | total.s())


@shared_task(bind=True)
def second_delivery(self: "Task[Any, Any]") -> str:
    if not (self.request.delivery_info or {}).get("redelivered"):
        raise Reject("not yet", requeue=True)
    return "second"


@shared_task(bind=True)
def asked_eta(self: "Task[Any, Any]") -> Any:
    return self.request.eta
