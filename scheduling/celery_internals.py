"""Calls of private names of Celery, kombu and billiard; docs/celery.md has the table of them all.

A subclass of Celery's that overrides a private method stands where its class does: `App`, `Backend`
and `HintRequest`, and kombu's transport in `scheduling.broker`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from celery.backends.base import _result_errbacks  # type: ignore[attr-defined]
from celery.canvas import _chain, _chord  # type: ignore[attr-defined]
from kombu.utils.uuid import uuid

Chain, Chord = _chain, _chord


def make_ids_by(new_id: Callable[[], UUID]) -> None:
    """Let Celery make its ids by `new_id`: ids that it gives to parts of chains become runs' ids.

    Celery has no setting for that, and no object to hand it to. All of Celery calls one function of
    kombu's, and this is the default of its argument.
    """
    uuid.__defaults__ = (new_id,)


# --- Tasks and signatures ------------------------------------------------------------------------


def exec_options(task: Any) -> dict[str, Any]:
    """Return the options of execution that a task declares."""
    options: dict[str, Any] = task._get_exec_options()
    return options


def merged(
    signature: Any, args: Sequence[Any], options: Mapping[str, Any]
) -> tuple[Any, Any, dict[str, Any]]:
    """Return the arguments and options of a signature that is called with these as well."""
    args, kwargs, found = signature._merge(args, {}, options)
    return args, kwargs, found


# --- Results -------------------------------------------------------------------------------------


def result_errbacks(step: Any, app: Any) -> tuple[str, list[Any]]:
    """Return the id of a step's result, and the errbacks of the step."""
    task_id, errbacks = _result_errbacks(step, app)
    return task_id, errbacks


def call_errbacks(backend: Any, request: Any, error: BaseException, traceback: str) -> None:
    """Call the errbacks of a task that has failed."""
    backend._call_task_errbacks(request, error, traceback)


def fail_chain(
    backend: Any, chain: Any, error: BaseException, traceback: str | None, state: str
) -> None:
    """Give the steps that would have come after a task an end in this state."""
    backend._fail_chain(chain, error, traceback, state=state)


def takes_error(backend: Any, errback: Any) -> bool:
    """Return whether an errback takes request, error and traceback, and not an id alone."""
    return bool(backend._errback_arity_greater(errback, 1))


def keep_result(result: Any, meta: Any) -> bool:
    """Give an AsyncResult its stored result; return whether it is a final one."""
    result._maybe_set_cache(meta)
    return bool(result._cache)


# --- Messages and workers ------------------------------------------------------------------------


def address(channel: Any, message: dict[str, Any], queue: str) -> None:
    """Add to a message the fields that kombu adds for a queue."""
    channel._inplace_augment_message(message, "", queue)


def children_of(pool: Any) -> list[int]:
    """Return the process ids of a prefork pool's children."""
    return [child.pid for child in pool._pool._pool]


def replace_limiter(consumer: Any, limit: Callable[..., Any]) -> Callable[..., Any]:
    """Let `limit` start the messages of tasks with a rate limit; return Celery's own function."""
    own: Callable[..., Any] = consumer._limit_task
    consumer._limit_task = limit
    return own


def start_limited(consumer: Any, request: Any) -> None:
    """Give the task of a message to the pool, its turn having come."""
    consumer._limit_move_to_pool(request)
