"""The diary of jobs: one JSON line for each start and end, outside the ledger.

Each process appends to a file of its own and syncs it before the job goes on: a line in it has
happened, even if the process was killed a moment later.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

# In the environment of workers: the directory of the files, and the name of the process.
PLACE, PROCESS = "CHAOS_EVIDENCE", "CHAOS_PROCESS"


@dataclass(frozen=True)
class Line:
    """One line: `what` is start, end or fail; `at` is the machine's clock, in seconds since 1970.

    `token` is the job's first argument: a schedule's name, or the name of a call of `enqueue`.
    """

    what: str
    run: str
    attempt: int
    token: str
    due_at: datetime
    at: float
    process: str
    pid: int


def write(what: str, run: str, attempt: int, token: str, due_at: datetime) -> None:
    """Append a line to this process's file and wait until it is stored."""
    line = {
        "what": what, "run": run, "attempt": attempt, "token": token, "due_at": due_at.isoformat(),
        "at": time.time(), "process": os.environ[PROCESS], "pid": os.getpid(),
    }  # fmt: skip
    path = Path(os.environ[PLACE]) / f"{os.environ[PROCESS]}-{os.getpid()}.jsonl"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(place: Path) -> list[Line]:
    """Return all lines of a directory, in the order in which they were written."""
    return sorted(_lines(place), key=lambda line: line.at)


def _lines(place: Path) -> Iterator[Line]:
    for path in place.glob("*.jsonl"):
        for text in path.read_text().splitlines():
            fields = json.loads(text)
            due_at = datetime.fromisoformat(fields.pop("due_at")).astimezone(UTC)
            yield Line(**fields, due_at=due_at)
