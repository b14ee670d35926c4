"""What a run's end sets off: links, the rest of a chain, errbacks, the body of a chord.

A run carries them as Celery's own signatures, in JSON (`Run.follow_ups`). Celery's tracer never
sees them: `finish` sends them, in the transaction that ends the run. Which messages they come to
stays Celery's business: its code takes them apart, and for as long as `sending` lasts the app
writes each message that it is asked to send as a row.
"""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple
from uuid import UUID

from celery import current_app, signature, states
from celery.app.task import Context
from celery.exceptions import TaskRevokedError
from celery.utils.functional import maybe_list
from django.db import InterfaceError, OperationalError, transaction
from kombu.utils.json import loads

from scheduling.errors import EnqueueError
from scheduling.logs import event
from scheduling.registry import encode

logger = logging.getLogger(__name__)

CARRIED = ("link", "link_error", "chain", "chord")

# Where a run waits that has replaced itself with something longer, whose last part has its id:
# the instant at which nothing ever comes. That part's turn, or its failure, ends the wait.
PARKED = datetime(9999, 1, 1, tzinfo=UTC)


class FollowUpError(EnqueueError):
    """A follow-up cannot be written, and so its run cannot end as it would have."""


class FollowUpCancelledError(EnqueueError):
    """The run that a follow-up should go on with has ended meanwhile: it was cancelled."""


def carried_in(options: Mapping[str, Any]) -> str:
    """Return those of `send_task`'s options that a run's end sets off, as text for its row."""
    carried = {name: options[name] for name in CARRIED if options.get(name)}
    for name in ("link", "link_error"):
        if name in carried:
            carried[name] = maybe_list(carried[name])
    return encode(carried) if carried else ""


def request_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a row's options are called in the request of a Celery task."""
    fields = {name: value for name, value in options.items() if name not in ("headers", "failure")}
    if "group_id" in fields:
        fields["group"] = fields.pop("group_id")
    return fields


@dataclass(frozen=True)
class Ended:
    """A run at its end, as `finishing.ENDING` reads it."""

    id: UUID
    task: str
    args: str
    kwargs: str
    options: str
    follow_ups: str
    failures: int
    worker: str

    @cached_property
    def carried(self) -> dict[str, Any]:
        if not self.follow_ups:
            return {}
        try:
            carried: dict[str, Any] = loads(self.follow_ups)
        except Exception as error:  # kombu's decoders of typed values raise whatever they like
            event(logger, "follow_ups_unreadable", level=logging.ERROR, run=self.id, error=error)
            return {}
        return carried

    @cached_property
    def request(self) -> Context:
        """What Celery's own code wants to know of the task that has ended."""
        fields = {"root_id": str(self.id), **request_fields(_readable(self.options) or {})}
        return Context(
            {
                "id": str(self.id),
                "task": self.task,
                "args": _readable(self.args),
                "kwargs": _readable(self.kwargs),
                "retries": self.failures,
                "hostname": self.worker,
                "delivery_info": {},
                "errbacks": self.carried.get("link_error"),
                "chain": self.carried.get("chain"),
                "chord": self.carried.get("chord"),
                **fields,
            }
        )


def _readable(text: str) -> Any:
    try:
        return loads(text)
    except Exception:
        return None


# --- Sending ------------------------------------------------------------------------------------


class Sender(NamedTuple):
    """The run whose end is being written; its follow-ups are its children."""

    id: UUID
    root_id: str


_local = threading.local()


def sender() -> Sender | None:
    """Return whose follow-ups this thread is writing; None where it writes none."""
    return getattr(_local, "sender", None)


@contextmanager
def sending(ended: Ended) -> Iterator[None]:
    """While this lasts, a message that this thread sends is a row: `ended`'s follow-up."""
    root_id = ended.request.root_id or str(ended.id)
    outer, _local.sender = sender(), Sender(ended.id, root_id)
    try:
        yield
    finally:
        _local.sender = outer


def send_next(ended: Ended, value: object) -> list[Any]:
    """Write what follows a success but for its chord: links and the next step of its chain.

    Returns:
        The results of what was sent: the children of the run's own result.

    Raises:
        FollowUpError: one of them cannot be written; nothing must stay of the others.
    """
    steps: list[tuple[Any, dict[str, Any]]] = [(link, {}) for link in ended.carried.get("link", ())]
    if chain := ended.carried.get("chain"):
        steps.append((chain[-1], {"chain": chain[:-1]}))
    with sending(ended):
        return [_send(ended, step, (value,), options) for step, options in steps]


def send_replacement(ended: Ended, replacement: str) -> None:
    """Write what a run has replaced itself with.

    Raises:
        FollowUpError: it cannot be written.
    """
    with sending(ended):
        _send(ended, loads(replacement), (), {})


def count_part(ended: Ended, state: str, value: object) -> None:
    """Count the run as a part of its chord, if it is one; the last part writes the body."""
    if ended.request.chord:
        with _safely(ended):
            _backend().on_chord_part_return(ended.request, state, value)


def send_failure(ended: Ended, state: str, error: BaseException, traceback: str) -> None:
    """Write what follows an end that is no success: the chord's, the chain's and its errbacks."""
    abandon(ended, state, error, traceback)
    if ended.request.errbacks:
        with _safely(ended):
            _backend()._call_task_errbacks(ended.request, error, traceback)


def abandon(ended: Ended, state: str, error: BaseException, traceback: str) -> None:
    """End what waits for a run that has no result to give: the rest of its chain, its chord."""
    count_part(ended, state, error)
    if ended.request.chain:
        with _safely(ended):
            _backend()._fail_chain(ended.request.chain, error, traceback, state=state)


@contextmanager
def _safely(ended: Ended) -> Iterator[None]:
    """Send, and let nothing that a follow-up is made of keep its run from ending."""
    try:
        with transaction.atomic(), sending(ended):
            yield
    except (OperationalError, InterfaceError):
        raise
    except Exception as error:
        event(logger, "follow_ups_refused", level=logging.ERROR, run=ended.id, error=error)
        logger.debug("follow_ups_refused", exc_info=True)


def _send(ended: Ended, step: Any, args: tuple[object, ...], options: dict[str, Any]) -> Any:
    family = {"parent_id": str(ended.id), "root_id": ended.request.root_id}
    name = step.get("task", step) if isinstance(step, Mapping) else step
    try:
        wanted: Any = signature(step, app=current_app)
        return wanted.apply_async(args, **options, **family)
    except (OperationalError, InterfaceError):
        raise
    except FollowUpCancelledError as error:
        event(logger, "follow_up_cancelled", run=ended.id, task=name, id=wanted.id)
        _cancel_rest(wanted, options, error)
        return wanted.AsyncResult(wanted.id)
    except Exception as error:
        raise FollowUpError(f"its follow-up {name} cannot be sent: {error}") from error


def _cancel_rest(step: Any, options: Mapping[str, Any], error: BaseException) -> None:
    """End what a cancelled step of a chain would have set off."""
    request = Context(step)
    request.update(step.options, id=step.id, group=step.options.get("group_id"))
    why = TaskRevokedError(str(error))
    if request.chord:
        _backend().on_chord_part_return(request, states.REVOKED, why)
    _backend()._fail_chain(options.get("chain"), why, None, state=states.REVOKED)


def _backend() -> Any:
    return current_app.backend


# --- Errbacks -----------------------------------------------------------------------------------

TOLD = ("id", "task", "args", "kwargs", "retries", "root_id", "parent_id", "group", "group_index",
        "hostname", "headers", "stamps", "stamped_headers")  # fmt: skip


def send_errbacks(request: Context, error: BaseException, traceback: str | None) -> None:
    """Write a run for each errback; one that cannot be written stops no other.

    Celery calls errbacks of the newer style, `(request, error, traceback)`, where the task failed.
    That may be in beat, or in a transaction. Here each is a job, and its worker, which knows it,
    decides which style it has: see `errback_arguments`.
    """
    failure = _failure(request, error, traceback)
    for errback in maybe_list(request.errbacks) or ():
        wanted: Any = signature(errback, app=current_app)
        try:
            with transaction.atomic():
                _send_errback(wanted, request, failure)
        except (OperationalError, InterfaceError):
            raise
        except Exception as refusal:
            event(logger, "errback_refused", level=logging.ERROR, run=request.id,
                  task=wanted.task, error=refusal)  # fmt: skip


def _send_errback(errback: Any, request: Context, failure: dict[str, Any]) -> None:
    family = {"parent_id": request.id, "root_id": request.root_id or request.id}
    if errback.subtask_type:  # a canvas takes the id, as an errback of the older style does
        errback.apply_async((request.id,), **family)
        return
    args, kwargs, options = errback._merge((request.id,), {}, family)
    if not errback.immutable:
        options = {**options, "failure": failure}
    current_app.send_task(errback.task, args, kwargs, **options)


def _failure(request: Context, error: BaseException, traceback: str | None) -> dict[str, Any]:
    told = {name: request.get(name) for name in TOLD if request.get(name) is not None}
    failure = {
        "request": told,
        "error": _backend().prepare_exception(error),
        "traceback": traceback or "",
    }
    try:
        encode(failure)
    except EnqueueError:  # a chord's own arguments can hold what no row has seen
        failure["request"] = {name: told[name] for name in ("id", "task") if name in told}
    return failure


def errback_arguments(
    job: Any, failure: Mapping[str, Any], args: list[Any], kwargs: Mapping[str, Any]
) -> list[Any]:
    """Return the arguments of an errback, which are stored as those of the older style."""
    if not _is_new_style(job, args[1:], kwargs):
        return args
    error = _backend().exception_to_python(failure["error"])
    return [Context(failure["request"]), error, failure["traceback"], *args[1:]]


def _is_new_style(job: Any, args: list[Any], kwargs: Mapping[str, Any]) -> bool:
    """Ask as Celery does: `backends.base.Backend._call_task_errbacks`."""
    errback = job.s(*args, **kwargs)
    header = getattr(job, "__header__", None)
    bound = hasattr(header, "func")  # a partial: `bind=True` makes it a task that can retry
    return header is not None and not bound and _backend()._errback_arity_greater(errback, 1)
