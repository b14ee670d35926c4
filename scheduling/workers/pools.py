"""The Celery pools that a worker may use: leases and endings are tested with these."""

from typing import Any

from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.concurrency.solo import TaskPool as SoloPool
from celery.concurrency.thread import TaskPool as ThreadPool

KNOWN = (PreforkPool, ThreadPool, SoloPool)


def refuse_others(pool_class: type[Any]) -> None:
    """End the worker's start if it has another pool.

    In a pool of greenlets the threads that renew leases are greenlets too: one statement that waits
    for a locked row holds all of them up, and no signal reaches the worker.

    Raises:
        SystemExit: with one line that says what to use instead.
    """
    if not issubclass(pool_class, KNOWN):
        raise SystemExit(
            f"truebeat: a worker cannot use the pool {pool_class.__module__}:"
            f"{pool_class.__qualname__}: its leases could not be kept. Use --pool prefork, or"
            f" --pool threads for jobs that mostly wait."
        )
