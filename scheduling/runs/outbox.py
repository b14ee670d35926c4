"""Writes the follow-ups of one run together: one statement for a thousand of them."""

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

BATCH = 1000


Columns = Mapping[str, Any]  # of a run, as `enqueueing` names them
Write = Callable[[list[Columns]], None]


class Outbox:
    """Collects runs that one piece of a canvas comes to, and writes them a batch at a time.

    `held` is the run that replaces itself: what has its id can only go on once it has been moved.
    """

    def __init__(self, held: UUID | None = None) -> None:
        self._held = held
        self._runs: list[Columns] = []
        self._write: Write | None = None
        self._kept: list[Columns] = []

    def add(self, run: Columns, write: Write) -> None:
        """Add a run, which `write` writes with others. What refuses it may be raised later."""
        self._write = write
        if run["id"] == self._held:
            self._kept.append(run)
            return
        self._runs.append(run)
        if len(self._runs) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Write what was added since the last time.

        Raises:
            EnqueueError: one of them cannot be written; nothing of this piece must stay.
        """
        runs, self._runs = self._runs, []
        if runs and self._write:
            self._write(runs)

    def discard(self) -> None:
        """Forget what was added and has not been written."""
        self._runs = []

    def release(self) -> None:
        """Write what had to wait for the run that is held."""
        self._held, self._runs, self._kept = None, self._kept, []
        self.flush()
