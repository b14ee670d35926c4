"""Jobs that leave evidence outside the system under test: one line for each start, in a file."""

import gc
import os
import time
from pathlib import Path
from typing import Any

from celery import Task, shared_task
from celery.exceptions import Ignore, Reject
from django.db import connection, transaction

from scheduling.jobs import Job, PermanentError, RunCancelled, current_run
from tests.jobs import bases, canvas

__all__ = ["bases", "canvas"]  # Celery finds only tasks that this module imports


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("not even this")


def note(path: str, text: str) -> int:
    """Append one line and return how many there are; one write, so that processes may share it."""
    with Path(path).open("a") as file:
        file.write(text + "\n")
    return len(Path(path).read_text().splitlines())


@shared_task
def add(x: int, y: int) -> int:
    return x + y


@shared_task
def shared_objects() -> int:
    """Return how many objects the garbage collector leaves alone."""
    return gc.get_freeze_count()


@shared_task
def write(path: str, text: str = "") -> str:
    run = current_run()
    note(path, text or (f"{run.id} {run.attempt} {run.due_at.isoformat()}" if run else "untracked"))
    return text


@shared_task(rate_limit="30/m")
def limited(path: str) -> None:
    note(path, f"limited {time.monotonic()}")


@shared_task
def sleep(path: str, seconds: float) -> None:
    run = current_run()
    note(path, f"start {run.attempt if run else 0} {os.getpid()}")
    time.sleep(seconds)
    note(path, f"end {run.attempt if run else 0} {os.getpid()}")


@shared_task
def tick(path: str, seconds: float) -> None:
    """Note, again and again, which attempt is at work."""
    run, until = current_run(), time.monotonic() + seconds
    while time.monotonic() < until:
        note(path, f"at {run.attempt if run else 0}")
        time.sleep(0.02)


@shared_task
def sleep_on(path: str, seconds: float, stubborn: bool) -> None:
    """Sleep; say so when told that the run is cancelled, and then end or go on."""
    run = current_run()
    note(path, f"start {run.attempt if run else 0}")
    try:
        time.sleep(seconds)
    except RunCancelled:
        note(path, f"told {run.cancel_requested if run else None}")
        if not stubborn:
            raise
        time.sleep(seconds)
    note(path, "end")


@shared_task(base=Job, aliases=["tests.jobs.tasks.former"])
def renamed(path: str) -> None:
    note(path, "renamed")


@shared_task(base=Job, max_attempts=1, soft_time_limit=1)
def softly() -> None:
    time.sleep(30)


@shared_task(base=Job, max_attempts=2, time_limit=1)
def hardly() -> None:
    time.sleep(30)


@shared_task(base=Job, max_attempts=1)
def once() -> None:
    time.sleep(30)


@shared_task
def fail(path: str, times: int) -> str:
    """Fail the first `times` times."""
    count = note(path, "try")
    if count <= times:
        raise ConnectionError(f"down \0 the {count}. time")
    return "done"


@shared_task
def fail_for_good(message: str) -> None:
    raise PermanentError(message)


@shared_task(autoretry_for=(ConnectionError,), max_retries=2, retry_backoff=False,
             default_retry_delay=0)  # fmt: skip
def autoretry(path: str, times: int) -> str:
    if note(path, "try") <= times:
        raise ConnectionError("down")
    return "done"


@shared_task(bind=True, max_retries=None, default_retry_delay=0)
def retry_in_transaction(self: "Task[Any, Any]", path: str, times: int) -> str:
    with transaction.atomic():
        if note(path, f"retries {self.request.retries}") <= times:
            raise self.retry(countdown=0)
    return "done"


@shared_task(bind=True)
def replace_itself(self: "Task[Any, Any]", path: str) -> None:
    note(path, "replacing")
    self.replace(write.si(path, "replaced"))


@shared_task
def end_with(name: str) -> None:
    if name == "ignore":
        raise Ignore("nothing to say")
    if name == "reject":
        raise Reject("no use")
    if name == "exit":
        raise SystemExit(3)
    if name == "memory":
        raise MemoryError
    if name == "kill":
        os.kill(os.getpid(), 9)
    if name == "terminate":
        os.kill(os.getpid(), 15)
        time.sleep(30)
    if name == "kill worker":
        os.kill(os.getppid(), 9)
        time.sleep(30)  # it dies with its parent


@shared_task(autoretry_for=(ConnectionError,), max_retries=None)
def end_with_for_ever(name: str) -> None:
    end_with(name)


@shared_task
def begin_and_leave() -> None:
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")


@shared_task
def unspeakable() -> None:
    raise Unspeakable


@shared_task(bind=True)
def retry_in_ages(self: "Task[Any, Any]") -> None:
    raise self.retry(countdown=1e15)


@shared_task(ignore_result=True)
def without_result(path: str) -> str:
    note(path, "ran")
    return "never stored"


@shared_task
def unserialisable() -> object:
    return object()
