"""Lifecycle ids from a CSV file: read as a stream, checked by line, written in one transaction.

The lines go into a temporary table, in which Postgres finds duplicates and changes. So memory stays
bounded for a file of any size. Importing a file twice changes nothing.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from django.db import connection, transaction

from notifications.dates import parse_day
from notifications.models import LifecycleId
from scheduling.outgoing.mail import address_problem

COLUMNS = ("lcid", "name", "issued_on", "expires_on", "requester_email", "requester_name")
MAY_BE_EMPTY = {"issued_on", "requester_name"}
LONGEST = {
    field.name: field.max_length
    for field in LifecycleId._meta.concrete_fields
    if field.max_length is not None
}
WHOLE_LINE = "(whole line)"
# Bytes that are not UTF-8 become these under errors="surrogateescape".
NOT_UTF8 = re.compile("[\udc80-\udcff]")
CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f]")

MAKE_STAGE = """
CREATE TEMPORARY TABLE lifecycle_stage (
    line integer, valid boolean, lcid text, name text, issued_on date, expires_on date,
    requester_email text, requester_name text
)
"""

COPY_TO_STAGE = f"COPY lifecycle_stage (line, valid, {', '.join(COLUMNS)}) FROM STDIN"

# A line whose LCID stood on an earlier line, valid or not: the intended line is unknown.
REMOVE_DUPLICATES = f"""
WITH doubled AS (
    SELECT lower(lcid) AS lcid, min(line) AS first_line
      FROM lifecycle_stage GROUP BY lower(lcid) HAVING count(*) > 1
), removed AS (
    DELETE FROM lifecycle_stage stage USING doubled
     WHERE lower(stage.lcid) = doubled.lcid AND stage.line > doubled.first_line
    RETURNING stage.*, first_line
)
SELECT line, first_line, {", ".join(COLUMNS)} FROM removed WHERE valid ORDER BY line
"""  # noqa: S608 (constants)

# A line that would make a second record beside one whose LCID differs in case only.
REMOVE_OTHER_CASE = f"""
WITH removed AS (
    DELETE FROM lifecycle_stage stage USING notifications_lifecycleid record
     WHERE valid AND lower(record.lcid) = lower(stage.lcid) AND NOT EXISTS (
        SELECT 1 FROM notifications_lifecycleid same WHERE same.lcid = stage.lcid)
    RETURNING stage.*, record.lcid AS known
)
SELECT DISTINCT ON (line) line, known, {", ".join(COLUMNS)} FROM removed ORDER BY line
"""  # noqa: S608 (constants)

# xmax is 0 in a row that was inserted. The status is the users', no file's.
WRITE = f"""
WITH written AS (
    INSERT INTO notifications_lifecycleid AS record ({", ".join(COLUMNS)})
    SELECT {", ".join(COLUMNS)} FROM lifecycle_stage WHERE valid ORDER BY lcid
        ON CONFLICT (lcid) DO UPDATE
       SET ({", ".join(COLUMNS[1:])}) = ROW({", ".join(f"excluded.{name}" for name in COLUMNS[1:])})
     WHERE ({", ".join(f"record.{name}" for name in COLUMNS[1:])})
        IS DISTINCT FROM ({", ".join(f"excluded.{name}" for name in COLUMNS[1:])})
    RETURNING xmax = 0 AS inserted
)
SELECT (SELECT count(*) FROM lifecycle_stage WHERE valid),
       count(*) FILTER (WHERE inserted), count(*) FILTER (WHERE NOT inserted) FROM written
"""  # noqa: S608 (constants)


class Problem(NamedTuple):
    """Why a line cannot be imported. Lines count from 1, the header's."""

    line: int
    column: str
    value: str
    what: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.column}: {self.what}: {self.value[:100]!r}"


class Refused(Exception):
    """Nothing was imported, and why."""


@dataclass
class Imported:
    """Numbers of lines: read, added, changed and so on."""

    read: int = 0
    rejected: int = 0
    inserted: int = 0
    updated: int = 0
    unchanged: int = 0


class Line(NamedTuple):
    """One record of the file: its first line, and its values or the problem with them."""

    number: int
    values: list[str]
    error: str = ""


def import_lifecycle_ids(
    lines: Iterable[str], *, report: Callable[[Problem], None], rejects: Path | None = None
) -> Imported:
    """Insert and update the lifecycle ids of a CSV file, all or none.

    Args:
        lines: its lines, decoded as UTF-8 with errors="surrogateescape".
        report: is called with each problem, most of them in the order of the lines.
        rejects: the file for lines with problems; the others are imported then.

    Raises:
        Refused: the file has no such lines, or has lines with problems and `rejects` is None.
    """
    lines, delimiter = _delimited(lines)
    records = _records(lines, delimiter)
    header = _read_header(records, report)
    rejected = _Rejects(rejects, header, delimiter)
    with transaction.atomic(), connection.cursor() as cursor, rejected:
        cursor.execute(MAKE_STAGE)
        counts = Imported()
        _stage(cursor, header, records, counts, report, rejected)
        cursor.execute(REMOVE_DUPLICATES)
        for number, first, *values in cursor:
            problem = Problem(number, "lcid", values[0], f"is on line {first} already")
            report(problem)
            rejected.add(Line(number, _in_order_of(header, values)), [problem])
        cursor.execute(REMOVE_OTHER_CASE)
        for number, known, *values in cursor:
            what = f"differs in case only from the record {known!r}: write it so"
            problem = Problem(number, "lcid", values[0], what)
            report(problem)
            rejected.add(Line(number, _in_order_of(header, values)), [problem])
        counts.rejected = rejected.count
        if not counts.read:
            raise Refused("The file has a header and no line below it.")
        if counts.rejected and rejects is None:
            raise Refused(f"{counts.rejected} of {counts.read} lines cannot be imported.")
        cursor.execute(WRITE)
        valid, counts.inserted, counts.updated = cursor.fetchone()
        cursor.execute("DROP TABLE lifecycle_stage")
        counts.unchanged = valid - counts.inserted - counts.updated
    return counts


def _delimited(lines: Iterable[str]) -> tuple[Iterable[str], str]:
    """Return the lines and the separator of their values: `,`, or `;` or a tab by the header.

    Spreadsheets write `;` where the comma is for decimals.
    """
    lines = iter(lines)
    first = next(lines, "")
    return chain([first] if first else [], lines), max(",;\t", key=first.count)


def _records(lines: Iterable[str], delimiter: str) -> Iterator[Line]:
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    while True:
        number = reader.line_num + 1
        try:
            values = [value.strip() for value in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            yield Line(number, [], f"is not CSV ({error})")
            continue
        if any(values):
            yield Line(number, values)


def _read_header(records: Iterator[Line], report: Callable[[Problem], None]) -> list[str]:
    header = next(records, None)
    if header is None:
        raise Refused(f"The file is empty. Its first line names the columns: {', '.join(COLUMNS)}.")
    text = header.error or ",".join(header.values)
    if NOT_UTF8.search(text):
        report(Problem(header.number, WHOLE_LINE, text, "is not UTF-8"))
        raise Refused("The file is not UTF-8.")
    wrong = [name for name in COLUMNS if header.values.count(name) != 1]
    for name in wrong:
        what = "this column is there twice" if name in header.values else "this column is missing"
        report(Problem(header.number, name, text, what))
    if wrong:
        raise Refused(f"The first line must name these columns: {', '.join(COLUMNS)}.")
    return header.values


def _stage(
    cursor: Any,
    header: list[str],
    records: Iterable[Line],
    counts: Imported,
    report: Callable[[Problem], None],
    rejected: "_Rejects",
) -> None:
    positions = [header.index(name) for name in COLUMNS]
    with cursor.copy(COPY_TO_STAGE) as copy:
        for line in records:
            counts.read += 1
            problems = _check_shape(line, len(header))
            values = [] if problems else [line.values[position] for position in positions]
            problems = problems or list(_check_values(line.number, values))
            if not problems:
                dates = [value or None for value in values[2:4]]
                copy.write_row((line.number, True, *values[:2], *dates, *values[4:]))
                continue
            if values and not any(problem.column == "lcid" for problem in problems):
                copy.write_row((line.number, False, values[0], *[None] * 5))
            for problem in problems:
                report(problem)
            rejected.add(line, problems)


def _check_shape(line: Line, width: int) -> list[Problem]:
    text = ",".join(line.values)
    if line.error:
        return [Problem(line.number, WHOLE_LINE, text, line.error)]
    if len(line.values) != width:
        what = f"has {len(line.values)} values where the header names {width} columns"
        return [Problem(line.number, WHOLE_LINE, text, what)]
    return []


def _check_values(number: int, values: Sequence[str]) -> Iterator[Problem]:
    for column, value in zip(COLUMNS, values, strict=True):
        if what := _what_is_wrong(column, value):
            yield Problem(number, column, value, what)


def _what_is_wrong(column: str, value: str) -> str:
    """Return the problem with the value of a column, or ""."""
    if not value:
        return "" if column in MAY_BE_EMPTY else "is empty"
    if NOT_UTF8.search(value):
        return "is not UTF-8"
    if CONTROL_CHARACTERS.search(value):
        return "has a control character"
    if column.endswith("_on"):
        return "" if _is_date(value) else "is not a date such as 2026-11-20"
    if len(value) > LONGEST[column]:
        return f"has {len(value)} characters, more than {LONGEST[column]}"
    return _mail_problem(value) if column == "requester_email" else ""


# Dates and requesters come in thousands of lines each.
@lru_cache(maxsize=4096)
def _is_date(value: str) -> bool:
    try:
        return isinstance(parse_day(value), date)
    except ValueError:
        return False


_mail_problem = lru_cache(maxsize=4096)(address_problem)


def _in_order_of(header: list[str], values: Sequence[object]) -> list[str]:
    given = dict(zip(COLUMNS, values, strict=True))
    return ["" if given.get(name) is None else str(given[name]) for name in header]


class _Rejects:
    """The rejected lines, counted, and written to a file that can be mended and imported again.

    The file is made with its first line, so that nothing rejected leaves nothing behind.
    """

    def __init__(self, path: Path | None, header: Sequence[str], delimiter: str) -> None:
        self.count = 0
        self._delimiter = delimiter
        self._path = path
        self._header = header
        self._file: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file:
            self._file.close()

    def add(self, line: Line, problems: Iterable[Problem]) -> None:
        self.count += 1
        if self._path is None:
            return
        if self._file is None:
            self._file = self._path.open(
                "w", newline="", encoding="utf-8", errors="surrogateescape"
            )
            self._write(["line", "problem", *self._header])
        what = "; ".join(f"{problem.column}: {problem.what}" for problem in problems)
        self._write([str(line.number), what, *line.values])

    def _write(self, values: Sequence[str]) -> None:
        csv.writer(self._file, delimiter=self._delimiter).writerow(values)
