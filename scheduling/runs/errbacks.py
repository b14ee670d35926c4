"""Errbacks of runs: each is a run of its own, in both of Celery's styles.

Celery calls errbacks of the newer style, `(request, error, traceback)`, in the process in which the
task failed. This may be beat, or inside a transaction. So the row of an errback has the argument of
the older style, which is the id of the failed run, and its options have the arguments of the newer
style. The worker that claims the errback knows the job, and so its style.
"""

import logging
from collections.abc import Mapping
from typing import Any

from celery import current_app, signature
from celery.app.task import Context
from celery.utils.functional import maybe_list
from django.db import InterfaceError, OperationalError, transaction

from scheduling import celery_internals
from scheduling.errors import EnqueueError
from scheduling.logs import event
from scheduling.postgres.sql import shortened
from scheduling.registry import encode
from scheduling.runs.follow_ups import sender
from scheduling.runs.outcomes import backend

logger = logging.getLogger(__name__)

TRACEBACK_MAX = 20_000  # characters

REQUEST_FIELDS = (
    "id", "task", "args", "kwargs", "retries", "root_id", "parent_id", "group", "group_index",
    "hostname", "headers", "stamps", "stamped_headers",
)  # fmt: skip


def send_errbacks(request: Context, error: BaseException, traceback: str | None) -> None:
    """Write a run for each errback of a failed task; a refused errback does not stop the others."""
    failure = _failure(request, error, traceback)
    errbacks = [signature(one, app=current_app) for one in maybe_list(request.errbacks) or ()]
    if _send_together(errbacks, request, failure) is None:
        return
    for errback in errbacks:
        refusal = _send_together([errback], request, failure)
        if refusal is not None:
            event(logger, "errback_refused", level=logging.ERROR, run=request.id,
                  task=errback.task, error=refusal)  # fmt: skip


def _send_together(
    errbacks: list[Any], request: Context, failure: dict[str, Any]
) -> Exception | None:
    """Write all of these errbacks, or none; return why they were refused."""
    sending = sender()
    try:
        with transaction.atomic():
            for errback in errbacks:
                _send_errback(errback, request, failure)
            if sending is not None:
                sending.outbox.flush()
    except (OperationalError, InterfaceError):
        raise
    except Exception as refusal:
        if sending is not None:
            sending.outbox.discard()
        return refusal
    return None


def _send_errback(errback: Any, request: Context, failure: dict[str, Any]) -> None:
    family = {"parent_id": request.id, "root_id": request.root_id or request.id}
    if errback.subtask_type:  # a canvas takes the id, like an errback of the older style
        errback.apply_async((request.id,), **family)
        return
    args, kwargs, options = celery_internals.merged(errback, (request.id,), family)
    if not errback.immutable:
        options = {**options, "failure": failure}
    current_app.send_task(errback.task, args, kwargs, **options)


def _failure(request: Context, error: BaseException, traceback: str | None) -> dict[str, Any]:
    kept = {name: request.get(name) for name in REQUEST_FIELDS if request.get(name) is not None}
    failure = {
        "request": kept,
        "error": backend().prepare_exception(error),
        "traceback": shortened(traceback or "", TRACEBACK_MAX),
    }
    try:
        encode(failure)
    except EnqueueError:  # a chord's own arguments need not be JSON
        failure["request"] = {name: kept[name] for name in ("id", "task") if name in kept}
    return failure


def errback_arguments(
    job: Any, failure: Mapping[str, Any], args: list[Any], kwargs: Mapping[str, Any]
) -> list[Any]:
    """Return the arguments of an errback, whose row has the argument of the older style."""
    if not _is_new_style(job, args[1:], kwargs):
        return args
    error = backend().exception_to_python(failure["error"])
    return [Context(failure["request"]), error, failure["traceback"], *args[1:]]


def _is_new_style(job: Any, args: list[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether Celery would call it so: see `backends.base.Backend._call_task_errbacks`."""
    errback = job.s(*args, **kwargs)
    header = getattr(job, "__header__", None)
    bound = hasattr(header, "func")  # a partial, made by `bind=True`
    return header is not None and not bound and celery_internals.takes_error(backend(), errback)
