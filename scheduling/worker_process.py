"""The state of a worker that its processes share with the code that Celery calls in them.

The worker makes it once, before its pool forks, and sets it as `app.worker_process`: Celery hands
the app to connections, result backends, requests, steps and tasks. Outside of a worker the
app has a process object that does nothing.
"""

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from scheduling.broker.gate import Gate
from scheduling.broker.intake import Intake
from scheduling.broker.signing import ATTEMPT

# The field of a request, in the parent, that names the child which has the hint: see
# `claiming.claimant`.
CLAIMANT = "run_claimant"


class Report(NamedTuple):
    """A report of Celery's about a message. `attempt` is None if the message is not a hint."""

    task_id: str
    attempt: int | None
    claimant: int | None
    status: str
    error: Any  # encoded
    traceback: str | None


class LeaseThread(Protocol):
    """The tasks of the lease thread: it queues them, so that the consumer's loop need not wait."""

    def take(self, report: Report) -> bool:
        """Queue a report; return whether it was a run's, or is the thread's to store."""

    def store(self, act: Callable[[], object]) -> bool:
        """Queue the storing of a plain message's result; return False if the caller must do it."""

    def put_back(self, task_id: str, attempt: object, task: str, limit: str, wait: float) -> None:
        """Queue that a hint's run waits so many seconds for its task's rate limit."""

    def look_soon(self) -> None:
        """Ask the ledger within a second which runs are to end."""


@dataclass
class WorkerProcess:
    """The worker that this process is the parent or a child of."""

    name: str = f"{os.uname().nodename}:{os.getpid()}"  # in the ledger
    intake: Intake = field(default_factory=Intake)
    gate: Gate | None = None
    lease_thread: LeaseThread | None = None
    # A byte that the parent shares with its children: 1 once the worker shuts down.
    _ends: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 1))

    @property
    def ends(self) -> bool:
        """Whether the worker shuts down; its children see it too."""
        return bool(self._ends[0])

    def note_end(self) -> None:
        self._ends[0] = 1

    def report(
        self, task_id: str, request: Any, status: str, error: Any, traceback: str | None
    ) -> bool:
        """Pass on a result from outside an execution; return False if the caller must store it."""
        attempt = getattr(request, ATTEMPT, None)
        if self.lease_thread is None:
            return attempt is not None
        claimed_by = getattr(request, CLAIMANT, None)
        report = Report(task_id, attempt, claimed_by, status, error, traceback)
        return self.lease_thread.take(report)

    def store(self, act: Callable[[], object], request: Any) -> bool:
        """Return whether the lease thread has taken over the storing of a message's result."""
        thread = self.lease_thread
        return thread is not None and not hasattr(request, ATTEMPT) and thread.store(act)


def process_of(app: Any) -> WorkerProcess:
    """Return the worker process of an app."""
    process: WorkerProcess = app.worker_process
    return process
