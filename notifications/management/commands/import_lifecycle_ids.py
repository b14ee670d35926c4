"""`manage.py import_lifecycle_ids FILE`: lifecycle ids from a CSV file, inserted and updated."""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO, cast

from django.core.management.base import BaseCommand, CommandError
from tqdm import tqdm

from notifications.lifecycle_csv import COLUMNS, Problem, Refused, import_lifecycle_ids

# With or without a byte order mark; bytes that are not UTF-8 are reported with their line.
ENCODING, ERRORS = "utf-8-sig", "surrogateescape"


class Command(BaseCommand):
    help = "Import lifecycle ids from a CSV file; importing it again changes nothing."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "file",
            help=f"CSV in UTF-8, whose first line names the columns {', '.join(COLUMNS)}; "
            "- reads standard input",
        )
        parser.add_argument(
            "--skip-invalid",
            action="store_true",
            help="import the good lines and write the others to a file",
        )
        parser.add_argument(
            "--rejects",
            type=Path,
            metavar="PATH",
            help="where --skip-invalid writes them (default: NAME.rejects.csv, here)",
        )

    def handle(self, *, file: str, skip_invalid: bool, rejects: Path | None, **_: Any) -> None:
        if rejects and not skip_invalid:
            raise CommandError("--rejects goes with --skip-invalid.")
        path = rejects or Path(f"{'stdin' if file == '-' else Path(file).stem}.rejects.csv")
        if file != "-" and path.resolve() == Path(file).resolve():
            raise CommandError(f"{path} is the file to read: name another one for the rejects.")
        try:
            with _opened(file) as source, _progress(source) as progress:
                imported = import_lifecycle_ids(
                    _lines(source, progress),
                    report=lambda problem: self._report(progress, problem),
                    rejects=path if skip_invalid else None,
                )
        except Refused as refusal:
            hint = "" if skip_invalid else " (--skip-invalid imports the valid lines)"
            raise CommandError(f"{refusal} Nothing was imported{hint}.") from None
        except OSError as error:
            raise CommandError(f"{error.filename or file}: {error.strerror or error}.") from None
        self.stdout.write(
            f"{imported.read} lines: {imported.inserted} inserted, {imported.updated} updated, "
            f"{imported.unchanged} unchanged, {imported.rejected} rejected."
        )
        if imported.rejected:
            self.stderr.write(f"The rejected lines are in {path}.")

    def _report(self, progress: "tqdm[Any]", problem: Problem) -> None:
        with progress.external_write_mode(file=sys.stderr):
            self.stderr.write(str(problem))


@contextmanager
def _opened(file: str) -> Iterator[TextIO]:
    """Open the file, or standard input, for `import_lifecycle_ids`."""
    if file == "-":
        standard_input = cast(TextIOWrapper, sys.stdin)
        standard_input.reconfigure(encoding=ENCODING, errors=ERRORS, newline="")
        yield standard_input
    else:
        with Path(file).open(encoding=ENCODING, errors=ERRORS, newline="") as source:
            yield source


def _progress(source: TextIO) -> "tqdm[Any]":
    """Return a bar of bytes, shown on a terminal only; a pipe has an unknown total."""
    size = os.fstat(source.fileno()).st_size
    return tqdm(
        total=size or None, unit="B", unit_scale=True, disable=not sys.stderr.isatty(), leave=False
    )


def _lines(source: TextIO, progress: "tqdm[Any]") -> Iterator[str]:
    for line in source:
        progress.update(len(line.encode(errors=ERRORS)))
        yield line
