"""Notes of jobs, apart from the measured system: their due time and their start."""

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.report import percentile

JOB = "bench.tasks.stamped"


class Evidence:
    """The file to which `bench.tasks.stamped` writes a line for each run."""

    def __init__(self) -> None:
        self._file = tempfile.NamedTemporaryFile(prefix="truebeat-bench-")  # noqa: SIM115
        self._seen, self._lines = 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._file.close()

    @property
    def path(self) -> str:
        return self._file.name

    def count(self) -> int:
        """Return how many runs have begun so far."""
        with Path(self.path).open("rb") as file:
            file.seek(self._seen)
            new = file.read()
        self._seen += len(new)
        self._lines += new.count(b"\n")
        return self._lines

    def lateness(self, since: float = 0.0) -> list[float]:
        """Return the milliseconds from due to begin of each run that was due `since` or later."""
        lines = (line.split() for line in Path(self.path).read_text().splitlines())
        pairs = ((float(due), float(began)) for due, began in lines)
        return [(began - due) * 1000 for due, began in pairs if due >= since]


def figures(late: list[float]) -> tuple[float, float, float]:
    """Return p50, p99 and the worst."""
    return percentile(late, 0.5), percentile(late, 0.99), max(late)
