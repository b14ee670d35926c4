"""What the benches found, as text: the machine, then one table for each bench."""

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from bench.ground import Ground

PACKAGES = ("celery", "kombu", "Django", "django-celery-beat", "psycopg", "redis")


@dataclass
class Sample:
    """One figure, measured some times.

    `gave_up` holds, for each try that reached the limit, how far it had got: the value of such a
    try, if it has one, is the limit, and the figure is "more than" it.
    """

    unit: str = "s"
    values: list[float] = field(default_factory=list)
    gave_up: list[str] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def is_bound(self) -> bool:
        return len(self.gave_up) * 2 > len(self.values)

    def __str__(self) -> str:
        if not self.values:
            return next(iter(self.gave_up), "-")
        if self.is_bound:
            return f"> {self.median:g} {self.unit} ({self.gave_up[-1]})"
        text = f"{_figure(self.median)} {self.unit}"
        if len(self.values) > 1:
            text += f" ({_figure(min(self.values))} to {_figure(max(self.values))})"
        return text


@dataclass
class Row:
    """One line of a table; `target` is what Truebeat promises itself."""

    label: str
    ours: Sample
    theirs: Sample = field(default_factory=Sample)
    target: str = ""

    def cells(self) -> tuple[str, ...]:
        return self.label, str(self.ours), str(self.theirs), self._ratio(), self.target

    def _ratio(self) -> str:
        if not self.ours.values or not self.theirs.values or not self.ours.median:
            return "-"
        more = "> " if self.theirs.is_bound else ""
        return f"{more}{_figure(self.theirs.median / self.ours.median)}x"


def _figure(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def table(title: str, columns: tuple[str, str], rows: Sequence[Row]) -> str:
    """Return a Markdown table; `columns` are the names of what is compared."""
    lines = [("", *columns, "ratio", "target"), *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = tuple("-" * width for width in widths)
    text = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in (lines[0], rule, *lines[1:])
    ]
    return "\n".join([f"## {title}", "", *text, ""])


def heading(ground: Ground) -> str:
    """Return where and on what this is measured."""
    return "\n".join(f"- {line}" for line in _about(ground)) + "\n"


def _about(ground: Ground) -> Iterator[str]:
    options = vars(ground.options)
    yield f"date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    yield f"machine: {os.cpu_count()} cores, {_cpu_model()}; load average at start: {load}"
    yield f"Python {platform.python_version()}, " + ", ".join(
        f"{package} {importlib.metadata.version(package)}" for package in PACKAGES
    )
    settings = {n: ground.value(f"SHOW {n}") for n in ("server_version", "fsync", "shared_buffers")}
    server = ground.redis.info("server")
    yield (
        f"PostgreSQL {settings['server_version']} (fsync {settings['fsync']}, shared_buffers "
        f"{settings['shared_buffers']}), Redis {server['redis_version']}"
    )
    yield "options: " + " ".join(f"--{k.replace('_', '-')} {_words(v)}" for k, v in options.items())


def _words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
