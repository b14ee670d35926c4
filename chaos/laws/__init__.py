"""The promises, each as a function from a history to its breaches. Pure.

`windows`: every instant of every rule has its run. `calls`: so has every call, and each follow-up.
`requests`: cancels, replays and backfills. `ends`: every run is final, for a reason. `starts`: none
is early, none doubled. `alone`: runs that exclude each other did not overlap.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from chaos.evidence import Line
from chaos.story import Row

DEFAULT_ATTEMPTS = 3  # settings.DEFAULT_MAX_ATTEMPTS, and one more than `retrying` says
CLOCK = 0.002  # seconds by which two readings of one machine's clock may differ
MOMENT = timedelta(microseconds=1)
# A beat may be frozen for this long between looking at a schedule's runs and writing the next one.
FROZEN = timedelta(seconds=12)


class Breach(NamedTuple):
    """A promise that was not kept: its name, and the evidence."""

    law: str
    what: str

    def __str__(self) -> str:
        return f"{self.law}: {self.what}"


def named(row: Row) -> str:
    return f"run {row.id} ({row.token}, due {row.due_at:%H:%M:%S.%f})"


def allowed(row: Row) -> int:
    return DEFAULT_ATTEMPTS if row.max_attempts is None else row.max_attempts


def begun(lines: list[Line]) -> list[Line]:
    """Return the starts among a run's lines, by their attempts."""
    return sorted((line for line in lines if line.what == "start"), key=lambda line: line.attempt)


def claims(row: Row, lines: list[Line]) -> Iterator[datetime]:
    """Yield when attempts were claimed by Postgres's clock, where the ledger says so.

    A worker may be frozen between its claim and the first line of its job.
    """
    for line in begun(lines):
        if line.attempt == row.attempt and row.started_at:
            yield row.started_at
    for error in row.errors:
        if error.get("started_at"):
            yield instant(error["started_at"])


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text)
