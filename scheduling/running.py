"""What this thread runs now: an execution of a job, and what the job asked for meanwhile."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from scheduling.models import Run, State
from scheduling.registry import attempts_allowed, encode, follow_ups_in, refuse_follow_ups

if TYPE_CHECKING:
    from scheduling.jobs import Job
    from scheduling.results import StoredResult


class CurrentRun(NamedTuple):
    """What a job may know of the run it is."""

    id: UUID
    schedule: str | None
    due_at: datetime
    attempt: int

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody asked to cancel it: one query, for jobs in pools that cannot raise."""
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


@dataclass
class Again:
    """What a job asked for by sending itself again: `retry`, or `replace` where `task` differs."""

    task: str
    args: str
    kwargs: str
    countdown: float | None
    eta: datetime | str | None
    options: Mapping[str, Any]


@dataclass
class Execution:
    """One execution in this thread; `tracked` where a row stands behind it."""

    id: UUID | str  # a plain message's id is any text
    job: "Job"
    attempt: int = 0
    claimed: Claimed | None = None
    result: "StoredResult | None" = None
    again: Again | None = None
    entered: bool = False  # the job's body has begun: a call of the job from here is a plain call
    in_body: bool = False  # the job's body runs now: it can be told something
    exhausted: bool = False  # `retry()` said that no more retries are allowed
    max_retries: int | None = None  # what `retry()` was given for this execution

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

    def can_become_a_run(self, options: Mapping[str, Any]) -> bool:
        """Whether this execution's next try can be a row.

        Not that of a plain message whose id is no UUID, or that is a part of a chain, group or
        chord: it stays Celery's, as it was sent.
        """
        return self.tracked or (run_id_of(self.id) is not None and not follow_ups_in(options))

    def ask_again(
        self,
        task: str,
        args: Any,
        kwargs: Any,
        countdown: float | None,
        eta: datetime | str | None,
        options: Mapping[str, Any],
    ) -> None:
        """Remember that this task sent itself again; `finish` makes it the next attempt."""
        if self.tracked:
            refuse_follow_ups(task, options)
        self.again = Again(
            task, encode(list(args or ())), encode(dict(kwargs or {})), countdown, eta, options
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
    """Return a task id as a run's; None where it can be none: a plain message may have any id."""
    try:
        return UUID(str(task_id))
    except ValueError:
        return None
