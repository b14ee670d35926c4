"""The runs that follow a run's end: links, the rest of a chain, errbacks, a chord's body.

A run carries them as Celery's own signatures, in JSON (`Run.follow_ups`). Celery's tracer never
sees them: `finish` sends them, in the transaction that ends the run. Celery's own code takes them
apart into messages, and within `sending` the app writes each message as a row.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from celery import Signature, current_app, signature, states
from celery.app.task import Context
from celery.exceptions import Ignore, TaskRevokedError
from celery.utils.functional import maybe_list
from django.db import InterfaceError, OperationalError, connection, transaction
from kombu.utils.json import loads

from scheduling import celery_internals
from scheduling.errors import EnqueueError, SchedulingError
from scheduling.logs import event
from scheduling.models import State
from scheduling.registry import encode, get_job
from scheduling.runs.message_options import request_fields
from scheduling.runs.outbox import Outbox
from scheduling.runs.outcomes import Outcome, backend
from scheduling.runs.stored_results import StoredResult

if TYPE_CHECKING:
    Links = Signature[Any] | Iterable[Signature[Any]] | None

logger = logging.getLogger(__name__)

CARRIED = ("link", "link_error", "chain", "chord")

# `run_at` of a run that has replaced itself with a longer canvas, whose last part has the run's id:
# an instant that never comes. The wait ends with the turn, or the failure, of that part.
PARKED = datetime(9999, 1, 1, tzinfo=UTC)


class FollowUpError(EnqueueError):
    """A follow-up cannot be written, so that its run cannot end as it should."""


class MovedMeanwhileError(SchedulingError):
    """Another process has moved the run while its follow-ups were written."""


class FollowUpCancelledError(EnqueueError):
    """The run that a follow-up should continue has been cancelled meanwhile."""


def asked_for(link: "Links", link_error: "Links") -> str:
    """Return the follow-ups of a run's success and failure, as text for its row.

    Raises:
        EnqueueError: a link is not a signature, or is not JSON, or its task is unknown.
    """
    return carried_in(
        {"link": _checked("link", link), "link_error": _checked("link_error", link_error)}
    )


def _checked(name: str, links: "Links") -> list["Signature[Any]"]:
    checked = list(maybe_list(links) or ())
    for link in checked:
        if not isinstance(link, Signature):
            raise EnqueueError(
                f"`{name}` must be a signature, as task.s(1), or a list of them, not {link!r}."
            )
        if not link.subtask_type:  # Celery checks the parts of a chain, a group or a chord
            get_job(str(link.task))
    return checked


def carried_in(options: Mapping[str, Any]) -> str:
    """Return the follow-ups among the options of `send_task`, as text for a run's row."""
    carried = {name: options[name] for name in CARRIED if options.get(name)}
    for name in ("link", "link_error"):
        if name in carried:
            carried[name] = maybe_list(carried[name])
    return encode(carried) if carried else ""


def in_words(text: str) -> str:
    """Return a run's follow-ups for people, as names of tasks, or ""."""
    try:
        carried = loads(text) if text else {}
        named = {
            "on success": [*carried.get("link", ()), *carried.get("chain", ())[::-1]],
            "on failure": carried.get("link_error", ()),
            "part of the chord of": [carried["chord"]] if carried.get("chord") else (),
        }
        said = {words: [step["task"] for step in steps] for words, steps in named.items()}
    except Exception:  # kombu's decoders of typed values may raise any error
        return f"cannot be read: {text[:100]!r}"
    return "; ".join(f"{words} {', '.join(tasks)}" for words, tasks in said.items() if tasks)


@dataclass(frozen=True)
class Ended:
    """A run at its end, as `ENDING` reads it."""

    id: UUID
    task: str
    args: str
    kwargs: str
    options: str
    follow_ups: str
    failures: int
    worker: str
    priority: int  # as it was given

    @cached_property
    def carried(self) -> dict[str, Any]:
        if not self.follow_ups:
            return {}
        try:
            carried: dict[str, Any] = dict(loads(self.follow_ups))
        except Exception as error:  # kombu's decoders of typed values may raise any error
            event(logger, "follow_ups_unreadable", level=logging.ERROR, run=self.id, error=error)
            return {}
        return carried

    @cached_property
    def read_options(self) -> dict[str, Any]:
        options = _readable(self.options)
        return options if isinstance(options, dict) else {}

    @property
    def asked_priority(self) -> int:
        asked: int = self.read_options.get("priority", self.priority)
        return asked

    @cached_property
    def request(self) -> Context:
        """The request of the ended task, as Celery's own code reads it."""
        return Context(
            {
                "id": str(self.id),
                "root_id": str(self.id),
                "task": self.task,
                "args": _readable(self.args),
                "kwargs": _readable(self.kwargs),
                "retries": self.failures,
                "hostname": self.worker,
                "delivery_info": {"priority": self.asked_priority},
                "errbacks": self.carried.get("link_error"),
                "chain": self.carried.get("chain"),
                "chord": self.carried.get("chord"),
                **request_fields(self.read_options),
            }
        )


def _readable(text: str) -> Any:
    try:
        return loads(text)
    except Exception:
        return None


# --- The end of a run that others follow ---------------------------------------------------------

ENDING = """
SELECT id, task, args, kwargs, options, follow_ups, failures, worker,
       COALESCE(given_priority, priority)
  FROM scheduling_run WHERE {where} {lock}
"""


def ending(where: str, parameters: dict[str, Any], *, lock: str = "") -> Ended | None:
    """Return the columns of an ending run that its follow-ups need; None if none matches."""
    with connection.cursor() as cursor:
        cursor.execute(ENDING.format(where=where, lock=lock), parameters)
        row = cursor.fetchone()
    return Ended(*row) if row else None


def end(ended: Ended, outcome: Outcome, move: Callable[[StoredResult | None], int]) -> None:
    """End a run by `move`, and write its follow-ups, in the caller's transaction.

    The run is moved last: until then its row is not locked, and its lease is renewed. So the
    follow-ups may take a long time to write.

    Raises:
        FollowUpError: a follow-up of a success cannot be written; the caller must roll back.
        MovedMeanwhileError: the attempt is over; likewise.
    """
    result = _known_result(ended, outcome)
    if outcome.state == State.SUCCEEDED and not isinstance(outcome.value, Ignore):
        _add_parts(ended, outcome.added)
        children = _send_next(ended, outcome.value)
        result = backend().with_children(result, children) if result and children else result
        count_part(ended, states.SUCCESS, outcome.value, result)
    else:
        error = _error_of(outcome)
        send = _abandon if isinstance(outcome.value, Ignore) else _send_failure
        send(ended, _status_of(outcome), error, outcome.traceback, result)
    _moved(move(result))


def _moved(count: int) -> None:
    if not count:
        raise MovedMeanwhileError("the attempt is over.")


def _known_result(ended: Ended, outcome: Outcome) -> StoredResult | None:
    """Return the result to store; a part of a chord needs one, even if its task ignores results."""
    known: StoredResult | None = outcome.result
    if ended.request.chord and (known is None or known.status not in states.READY_STATES):
        if outcome.state == State.SUCCEEDED and not isinstance(outcome.value, Ignore):
            known = backend().prepare_success(outcome.value, ended.task)
        else:
            known = backend().prepare_error(_status_of(outcome), _error_of(outcome), ended.task)
    return known


def _status_of(outcome: Outcome) -> str:
    return states.FAILURE if outcome.state == State.FAILED else states.REVOKED


def _error_of(outcome: Outcome) -> BaseException:
    if isinstance(outcome.value, BaseException) and not isinstance(outcome.value, Ignore):
        return outcome.value
    if outcome.state != State.FAILED:
        return TaskRevokedError(outcome.reason)
    if outcome.result is None or outcome.result.status != states.FAILURE:
        return SchedulingError(outcome.reason)
    error: BaseException = backend().exception_to_python(backend().decode(outcome.result.result))
    return error


# --- Sending ------------------------------------------------------------------------------------


class Sender(NamedTuple):
    """The run whose end is being written; its follow-ups are its children.

    `result` is stored for the run after its follow-ups have been written.
    """

    id: UUID
    root_id: str
    outbox: Outbox
    result: StoredResult | None = None


_local = threading.local()


def sender() -> Sender | None:
    """Return the run whose follow-ups this thread is writing, if any."""
    return getattr(_local, "sender", None)


@contextmanager
def sending(
    ended: Ended, result: StoredResult | None = None, outbox: Outbox | None = None
) -> Iterator[None]:
    """In this context, each message that this thread sends becomes a row that follows `ended`."""
    root_id, outbox = ended.request.root_id or str(ended.id), outbox or Outbox()
    outer, _local.sender = sender(), Sender(ended.id, root_id, outbox, result)
    try:
        yield
        outbox.flush()
    finally:
        _local.sender = outer


def _send_next(ended: Ended, value: object) -> list[Any]:
    """Write the follow-ups of a success except its chord: links, the next step of its chain.

    Returns:
        The results of the follow-ups: the children of the run's own result.

    Raises:
        FollowUpError: a follow-up cannot be written; the caller must roll the others back.
    """
    links, chain = ended.carried.get("link") or [], ended.carried.get("chain") or []
    if not isinstance(links, list) or not isinstance(chain, list):
        raise FollowUpError(f"its follow-ups cannot be read: {ended.follow_ups[:100]!r}")
    inherited: dict[str, Any] = {}
    if current_app.conf.task_inherit_parent_priority:
        inherited["priority"] = ended.asked_priority
    steps = [(link, inherited) for link in links]
    if chain:
        steps.append((chain[-1], {"chain": chain[:-1], **inherited}))
    with sending(ended):
        # Links are written together. The next step of a chain is not: it may continue a run that
        # has replaced itself, and may find that run cancelled.
        sent = [
            _send(ended, step, (value,), options, together=number < len(links))
            for number, (step, options) in enumerate(steps, start=1)
        ]
    return [result for result in sent if result is not None]  # an empty chain returns None


def replace(ended: Ended, outcome: Outcome, move: Callable[[], int]) -> None:
    """Write the replacement of a run, and let the run wait for it by `move`.

    Raises:
        FollowUpError: the replacement cannot be written.
        MovedMeanwhileError: the attempt is over.
    """
    _add_parts(ended, outcome.added)
    outbox = Outbox(replaced=ended.id)
    with sending(ended, outbox=outbox):
        _send(ended, loads(outcome.replacement), (), {})
    _moved(move())
    with sending(ended, outbox=outbox):
        outbox.release()


def _add_parts(ended: Ended, added: Iterable[str]) -> None:
    """Write the parts that a run has added to its chord, whose body waits for them.

    Raises:
        FollowUpError: a part cannot be written.
    """
    request = ended.request
    options: dict[str, Any] = {"chord": request.chord, "group_id": request.group}
    if request.group_index is not None:
        options["group_index"] = request.group_index
    with sending(ended):
        for part in added:
            wanted: Any = signature(loads(part), app=current_app)
            wanted.set(**options)
            backend().add_to_chord(request.group, wanted.freeze())
            _send(ended, wanted, (), {})


def count_part(ended: Ended, state: str, value: object, result: StoredResult | None) -> None:
    """Count the run as a part of its chord, if it is one; the last part writes the body."""
    if ended.request.chord:
        with _safely(ended, result):
            backend().on_chord_part_return(ended.request, state, value)


def _send_failure(
    ended: Ended, state: str, error: BaseException, traceback: str, result: StoredResult | None
) -> None:
    """Write the follow-ups of an end other than success: of chord, chain and errbacks."""
    _abandon(ended, state, error, traceback, result)
    if ended.request.errbacks:
        with _safely(ended):
            celery_internals.call_errbacks(backend(), ended.request, error, traceback)


def _abandon(
    ended: Ended, state: str, error: BaseException, traceback: str, result: StoredResult | None
) -> None:
    """End the rest of a run's chain, and its chord, which wait for a result that never comes."""
    count_part(ended, state, error, result)
    if ended.request.chain:
        with _safely(ended):
            celery_internals.fail_chain(backend(), ended.request.chain, error, traceback, state)


@contextmanager
def _safely(ended: Ended, result: StoredResult | None = None) -> Iterator[None]:
    """Send; log any error of a follow-up, so that its run ends all the same."""
    try:
        with transaction.atomic(), sending(ended, result):
            yield
    except (OperationalError, InterfaceError):
        raise
    except Exception as error:
        event(logger, "follow_ups_refused", level=logging.ERROR, run=ended.id, error=error)
        logger.debug("follow_ups_refused", exc_info=True)


def _send(
    ended: Ended,
    step: Any,
    args: tuple[object, ...],
    options: dict[str, Any],
    *,
    together: bool = False,
) -> Any:
    """Send one follow-up; with `together`, the next follow-up writes both."""
    family = {"parent_id": str(ended.id), "root_id": ended.request.root_id}
    name = step.get("task", step) if isinstance(step, Mapping) else step
    try:
        wanted: Any = signature(step, app=current_app)
        sent = wanted.apply_async(args, **options, **family)
        if not together:
            _local.sender.outbox.flush()
        return sent
    except (OperationalError, InterfaceError):
        raise
    except FollowUpCancelledError as error:
        event(logger, "follow_up_cancelled", run=ended.id, task=name, id=wanted.id)
        _cancel_rest(wanted, options, error)
        return wanted.AsyncResult(wanted.id)
    except Exception as error:
        raise FollowUpError(f"its follow-up {name} cannot be sent: {error}") from error


def _cancel_rest(step: Any, options: Mapping[str, Any], error: BaseException) -> None:
    """End the follow-ups of a cancelled step of a chain."""
    request = Context(step)
    request.update(step.options, id=step.id, group=step.options.get("group_id"))
    why = TaskRevokedError(str(error))
    if request.chord:
        backend().on_chord_part_return(request, states.REVOKED, why)
    celery_internals.fail_chain(backend(), options.get("chain"), why, None, states.REVOKED)
