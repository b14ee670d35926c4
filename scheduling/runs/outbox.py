"""Writes the follow-ups of one run together: one statement for a thousand of them."""

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

BATCH = 1000


Columns = Mapping[str, Any]  # of a run, as `enqueueing` names them
Write = Callable[[list[Columns]], None]


class Outbox:
    """Collects the runs of one piece of a canvas, and writes them a batch at a time.

    `replaced` is the run that replaces itself. A part with its id is kept back until the run has
    been moved.
    """

    def __init__(self, replaced: UUID | None = None) -> None:
        self._replaced = replaced
        self._runs: list[Columns] = []
        self._write: Write | None = None
        self._kept: list[Columns] = []

    def add(self, run: Columns, write: Write) -> None:
        """Add a run, which `write` writes with others; its errors may be raised by a later call."""
        self._write = write
        if run["id"] == self._replaced:
            self._kept.append(run)
            return
        self._runs.append(run)
        if len(self._runs) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Write the runs that were added since the last time.

        Raises:
            EnqueueError: a run cannot be written; the caller must roll this piece back.
        """
        runs, self._runs = self._runs, []
        if runs and self._write:
            self._write(runs)

    def discard(self) -> None:
        """Forget the runs that have not been written."""
        self._runs = []

    def release(self) -> None:
        """Write the part that was kept back for the replaced run."""
        self._replaced, self._runs, self._kept = None, self._kept, []
        self.flush()
