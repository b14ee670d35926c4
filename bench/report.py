"""The results as text: the machine, then one table for each bench."""

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from bench.testbed import Testbed

PACKAGES = (
    "celery", "kombu", "Django", "django-celery-beat", "django-celery-results", "celery-redbeat",
    "psycopg", "redis",
)  # fmt: skip


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
        text = _with_unit(self.median, self.unit)
        if len(self.values) > 1:
            text += f" ({_figure(min(self.values))} to {_figure(max(self.values))})"
        return text


class Target(NamedTuple):
    """A target of Truebeat: a figure of at most `most`, or better than the figure of a column.

    `times`: at least so many times that figure. `faster`: at most that figure divided by so many.
    """

    most: float | None = None
    times: float | None = None
    faster: float | None = None
    column: int = 1

    def told(self, samples: Sequence[Sample]) -> str:
        ours = samples[0]
        met = ours.values and not ours.is_bound and self._is_met(samples)
        return self._words(ours.unit) + ("" if met else ": not met")

    def _is_met(self, samples: Sequence[Sample]) -> bool:
        if self.most is not None:
            return samples[0].median <= self.most
        ours, theirs = samples[0].median, samples[self.column]
        if not theirs.values:
            return True
        if self.times is not None:
            return ours >= self.times * theirs.median
        return ours * (self.faster or 1) <= theirs.median

    def _words(self, unit: str) -> str:
        if self.most is not None:
            return f"<= {_with_unit(self.most, unit)}"
        if self.times is not None:
            return f">= {self.times:g} times column {self.column + 1}"
        return f"{self.faster:g} times as fast as column {self.column + 1}"


@dataclass
class Row:
    """One line of a table: a figure for each column, the first of them Truebeat's.

    `compared`: the others are shown as multiples of the first, too.
    """

    label: str
    samples: list[Sample]
    targets: tuple[Target, ...] = ()
    compared: bool = True

    def cells(self) -> tuple[str, ...]:
        ours, *others = self.samples
        targets = "; ".join(target.told(self.samples) for target in self.targets)
        return self.label, str(ours), *map(self._beside, others), targets

    def _beside(self, other: Sample) -> str:
        ours = self.samples[0]
        if not self.compared or not ours.values or not other.values or not ours.median:
            return str(other)
        more = "> " if other.is_bound else ""
        return f"{other}: {more}{_figure(other.median / ours.median)}x"


class Table(NamedTuple):
    """The results of one bench; the first of `columns` is Truebeat."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]

    def __str__(self) -> str:
        lines = [("", *self.columns, "target"), *(row.cells() for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rule = tuple("-" * width for width in widths)
        text = [
            "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
            for line in (lines[0], rule, *lines[1:])
        ]
        return "\n".join([f"## {self.title}", "", *text, ""])


def row(label: str, columns: int, unit: str = "s", *, most: float | None = None,
        compared: bool = True) -> Row:  # fmt: skip
    """Return an empty row; `most` is its target."""
    targets = () if most is None else (Target(most=most),)
    return Row(label, [Sample(unit) for _ in range(columns)], targets, compared)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the values lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def load() -> str:
    """Return the load average of the last minute."""
    return f"load {os.getloadavg()[0]:.1f}"


def heading(testbed: Testbed) -> str:
    """Return the machine and the versions of this measurement."""
    return "\n".join(f"- {line}" for line in _about(testbed)) + "\n"


def _about(testbed: Testbed) -> Iterator[str]:
    options = vars(testbed.options)
    yield f"date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    loads = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    yield f"machine: {os.cpu_count()} cores, {_cpu_model()}; load average at start: {loads}"
    yield f"Python {platform.python_version()}, " + ", ".join(
        f"{package} {importlib.metadata.version(package)}" for package in PACKAGES
    )
    settings = {
        n: testbed.value(f"SHOW {n}") for n in ("server_version", "fsync", "shared_buffers")
    }
    server = testbed.redis.info("server")
    yield (
        f"PostgreSQL {settings['server_version']} (fsync {settings['fsync']}, shared_buffers "
        f"{settings['shared_buffers']}), Redis {server['redis_version']}"
    )
    yield "options: " + " ".join(f"--{k.replace('_', '-')} {_words(v)}" for k, v in options.items())


def _with_unit(number: float, unit: str) -> str:
    return f"{_figure(number)} {unit}".rstrip()


def _figure(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def _words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
