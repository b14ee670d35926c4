"""Which of Celery's pools a worker can have, and how a pool of threads asks for more work."""

from typing import Any

from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.concurrency.solo import TaskPool as SoloPool
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.utils.functional import noop

# The pools that leases and the end of a worker are tested with.
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


def ask_anew_at_each_end(pool: Any, loop: Any) -> None:
    """Wake the consumer's loop whenever a thread is free again, to take the next message.

    A child's answer wakes the loop by itself. Without this, a full pool of threads that have all
    ended would do nothing until one of the loop's timers goes off: a few short runs a second.
    """
    on_apply = pool.on_apply

    def apply(*args: Any, **options: Any) -> Any:
        applied = on_apply(*args, **options)
        applied.f.add_done_callback(lambda _: loop.call_soon(noop))
        return applied

    pool.on_apply = apply
