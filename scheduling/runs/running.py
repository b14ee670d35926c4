"""The execution in this thread: its run, and the requests of its job."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from kombu.utils.json import loads

from scheduling.base_job import BaseJob
from scheduling.models import Run, State
from scheduling.registry import attempts_allowed, encode
from scheduling.runs.follow_ups import carried_in
from scheduling.runs.message_options import message_options
from scheduling.runs.outcomes import NextCall
from scheduling.runs.stored_results import StoredResult
from scheduling.task_options import DESTINATION, CeleryCall, instant_or_length, options_of


class CurrentRun(NamedTuple):
    """The run of the calling job, as the job may see it."""

    id: UUID
    schedule: str | None
    due_at: datetime
    attempt: int

    @property
    def cancel_requested(self) -> bool:
        """Whether a user asked to cancel it: one query, for pools that cannot interrupt a job."""
        asked = Run.objects.filter(pk=self.id, attempt=self.attempt, state=State.RUNNING)
        return asked.exclude(cancel_requested_by="").exists()


class Claimed(NamedTuple):
    """The columns that a claim returns."""

    args: str
    kwargs: str
    options: str
    schedule_name: str
    due_at: datetime
    failures: int
    max_attempts: int | None
    follow_ups: str
    priority: int  # as it was given


@dataclass
class Execution:
    """One execution in this thread; it is `tracked` if it belongs to a run."""

    id: UUID | str  # a plain message's id is any text
    job: BaseJob
    attempt: int = 0
    claimed: Claimed | None = None
    result: StoredResult | None = None
    again: NextCall | None = None  # the call that a run made of itself: its next attempt
    plain_again: CeleryCall | None = None  # likewise, of a plain message: it becomes a run
    entered: bool = False  # the job's body has begun: a call of the job from here is a plain call
    in_body: bool = False  # the job's body runs now, and can be interrupted
    exhausted: bool = False  # `retry()` found that no retry is left
    max_retries: int | None = None  # the argument of `retry()` in this execution
    asked: Mapping[str, Any] = field(default_factory=dict)  # the options that `retry()` was given
    replacement: str = ""  # JSON of the signature that `replace()` was given
    added: tuple[str, ...] = ()  # JSON of the signatures that `add_to_chord()` was given
    arguments: tuple[list[Any], dict[str, Any]] | None = None  # if they differ from the row's

    @property
    def tracked(self) -> bool:
        return self.claimed is not None

    @property
    def attempts_left(self) -> bool:
        """Whether another attempt is allowed after this one has failed."""
        if self.claimed is None:
            return False
        allowed = attempts_allowed(self.job.name, self.claimed.max_attempts)
        return allowed is None or self.claimed.failures + 1 < allowed

    @property
    def can_become_a_run(self) -> bool:
        """Whether this execution's next try can be a row: a plain message may have any id."""
        return self.tracked or run_id_of(self.id) is not None

    @contextmanager
    def body(self, request: Any) -> Iterator[None]:
        """Show the job its follow-ups in its request while its body runs.

        They are removed afterwards, because Celery's tracer would send them.
        """
        self.in_body = True
        carried = loads(self.claimed.follow_ups) if self.claimed and self.claimed.follow_ups else {}
        if carried:
            request.callbacks, request.errbacks = carried.get("link"), carried.get("link_error")
            request.chain, request.chord = carried.get("chain"), carried.get("chord")
        try:
            yield
        finally:
            self.in_body = False
            if carried:
                request.callbacks = request.errbacks = request.chain = request.chord = None

    def ask_again(self, call: CeleryCall) -> None:
        """Remember that this task sent itself again; `finish` makes the call the next attempt."""
        args, kwargs = list(call.args or ()), dict(call.kwargs or {})
        claimed = self.claimed
        if claimed and (args, kwargs) == self.arguments:
            texts = claimed.args, claimed.kwargs
        else:  # as texts, because the job may change its arguments afterwards
            texts = encode(args), encode(kwargs)
        if claimed is None:
            self.plain_again = call._replace(args=loads(texts[0]), kwargs=loads(texts[1]))
            return
        asked = {name: self.asked[name] for name in DESTINATION if self.asked.get(name) is not None}
        found = options_of(call.name, args, kwargs, asked) if asked else None
        when = instant_or_length(call.eta)
        self.again = NextCall(
            call.name,
            *texts,
            options=encode({**loads(claimed.options), **message_options(call.options)}),
            queue=found.queue if found and asked.keys() - {"priority"} else None,
            priority=found.priority if found and "priority" in asked else None,
            follow_ups=carried_in(call.options) if self.in_body else None,
            expires=instant_or_length(call.options.get("expires")),
            run_at=when if isinstance(when, datetime) else None,
            delay=instant_or_length(call.countdown or 0),
        )


_local = threading.local()


def current() -> Execution | None:
    """Return the execution that this thread is in, if any."""
    return getattr(_local, "execution", None)


def current_run() -> CurrentRun | None:
    """Return the run that the calling job is, or None for a plain Celery message."""
    running = current()
    if running is None or running.claimed is None:
        return None
    claimed, run_id = running.claimed, UUID(str(running.id))
    return CurrentRun(run_id, claimed.schedule_name or None, claimed.due_at, running.attempt)


@contextmanager
def entered(execution: Execution) -> Iterator[None]:
    """Make `execution` this thread's current one."""
    outer, _local.execution = current(), execution
    try:
        yield
    finally:
        _local.execution = outer


def run_id_of(task_id: object) -> UUID | None:
    """Return a task id as a run's id; None if it is not a UUID, as of some plain messages."""
    try:
        return UUID(str(task_id))
    except ValueError:
        return None
