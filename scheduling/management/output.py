"""Text for terminals: aligned tables, JSON lines, and instants as people read them."""

import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import chain, islice
from typing import Any

from scheduling import clock as ledger_clock
from scheduling import shapes
from scheduling.models import Calendar

Row = tuple[str, ...]

GAP = "  "
# The first rows decide the width of columns, so that a long table can be printed while it is read.
FITTED_ROWS = 500
NARROWEST = 8


def days_off_words(calendar: Calendar) -> str:
    """Return a calendar's days off in a line: `sat, sun; holidays of DE-BY; 2 dates`."""
    place = "-".join(filter(None, (calendar.country, calendar.subdivision)))
    dates = len(calendar.dates.all())
    parts = (
        ", ".join(shapes.weekdays(calendar.weekdays)),
        f"holidays of {place}" if place else "",
        f"{dates} date{'' if dates == 1 else 's'}" if dates else "",
    )
    return "; ".join(filter(None, parts)) or "none"


def json_array(values: Iterable[Any]) -> Iterator[str]:
    """Yield the lines of a JSON array while its elements arrive, one element a line."""
    yield "["
    line = ""
    for value in values:
        if line:
            yield f"{line},"
        line = json.dumps(value)
    if line:
        yield line
    yield "]"


def json_lines(value: Any) -> Iterator[str]:
    """Yield the lines of one JSON value, indented for people."""
    yield from json.dumps(value, indent=2).splitlines()


def table(head: Row, rows: Iterable[Row | str], *, flexible: Sequence[int] = ()) -> Iterator[str]:
    """Yield the lines of an aligned table; on a terminal, its `flexible` columns shrink to fit.

    In a pipe or a file, each cell is whole. A row that is a text is a line of its own.
    """
    rows = map(_printable_row, rows)
    first = [head, *islice(rows, FITTED_ROWS)]
    fitted_rows = [row for row in first if not isinstance(row, str)]
    widths = [max(map(len, column)) for column in zip(*fitted_rows, strict=True)]
    if (shown := terminal_width()) is None:
        flexible = ()
    else:
        _shrink(widths, flexible, shown)
    for row in chain(first, rows):
        if isinstance(row, str):
            yield row
            continue
        cells = (
            fitted(cell, width) if column in flexible else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield GAP.join(cells).rstrip()


def terminal_width() -> int | None:
    """Return how many characters of a line the terminal shows; None in a pipe or a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _printable_row(row: Row | str) -> Row | str:
    return printable(row) if isinstance(row, str) else tuple(map(printable, row))


def fitted(text: str, width: int) -> str:
    """Return `text` padded to `width`, or cut in the middle: the ends of a path matter most."""
    if len(text) <= width:
        return text.ljust(width)
    tail = width // 2
    return f"{text[: width - tail - 1]}…{text[-tail:]}"


def printable(text: str) -> str:
    """Return `text` as one line without control characters for a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> list[str]:
    """Return the lines of a text that jobs wrote, each safe to print."""
    return [printable(line.expandtabs(4)) for line in text.splitlines()]


def clock(at: datetime | None, now: datetime) -> str:
    """Return an instant in TIME_ZONE, as short as it can be: `today 06:00:00`."""
    if at is None:
        return "-"
    local = ledger_clock.local(at)
    if local.date() == ledger_clock.local(now).date():
        return f"today {local:%H:%M:%S}"
    return f"{local:%Y-%m-%d %H:%M}"


def full_clock(at: datetime | None, now: datetime) -> str:
    """Return an instant in TIME_ZONE to the second, with its zone and its distance from now."""
    if at is None:
        return "-"
    local = ledger_clock.local(at)
    return f"{local:%Y-%m-%d %H:%M:%S} {local.tzname()} ({distance(at, now)})"


def distance(at: datetime, now: datetime) -> str:
    """Return how far an instant is from now: `in 2h 5m`, `3d 4h ago`, `now`."""
    away = round((at - now).total_seconds())
    if away == 0:
        return "now"
    text = length(timedelta(seconds=abs(away)))
    return f"in {text}" if away > 0 else f"{text} ago"


def length(duration: timedelta) -> str:
    """Return a duration in its two largest units: `2h 5m`."""
    left, parts = round(duration.total_seconds()), list[str]()
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        number, left = divmod(left, size)
        if number or parts:
            parts.append(f"{number}{unit}" if number else "")
        if len(parts) == 2:
            break
    return " ".join(filter(None, parts)) or "0s"


def _shrink(widths: list[int], flexible: Sequence[int], shown: int) -> None:
    """Shorten the widest flexible columns until a line has at most `shown` characters."""
    while sum(widths) + len(GAP) * (len(widths) - 1) > shown:
        widest = max(flexible, key=lambda column: widths[column], default=None)
        if widest is None or widths[widest] <= NARROWEST:
            return
        widths[widest] -= 1
