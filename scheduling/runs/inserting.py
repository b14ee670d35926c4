"""Inserts runs: the one writer, except for two statements that also do something else.

`firing.WRITE` inserts the runs of due plans, moves these plans and may queue the runs at once.
`replaying.REPLAY` copies old runs inside Postgres, and checks there that no one has replayed them.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any
from uuid import UUID

from scheduling.broker.doorbell import ring_on_commit
from scheduling.errors import EnqueueError
from scheduling.ids import uuid7
from scheduling.models import UNFINISHED, Run
from scheduling.postgres.prepared import run_alone

COLUMNS = {
    "id": "uuid", "args": "text", "kwargs": "text", "origin": "text", "schedule_id": "integer",
    "schedule_name": "text", "task": "text", "options": "text", "queue": "text",
    "priority": "smallint", "state": "text", "max_attempts": "integer", "failures": "integer",
    "unique_key": "text", "enqueued_by": "text", "replay_of": "uuid", "backfill_id": "uuid",
    "follows": "uuid", "follow_ups": "text",
}  # fmt: skip
# An instant is given itself, or as a duration that counts from now by Postgres's clock.
INSTANTS = {
    "at": "timestamptz", "after": "interval", "due_at": "timestamptz", "deadline": "timestamptz",
    "deadline_in": "interval", "expires": "timestamptz", "expires_in": "interval",
}  # fmt: skip
TYPES = {**COLUMNS, **INSTANTS}
KEPT = "ON CONFLICT DO NOTHING RETURNING"  # appended by callers that handle a run that exists


class RunExistsError(EnqueueError):
    def __init__(self, run_id: object) -> None:
        super().__init__(f"there is a run with the id {run_id} already: give another one.")


def insert(shared: Iterable[str], each: Iterable[str] = ()) -> str:
    """Return the statement that inserts runs; columns that are not named have their defaults.

    Args:
        shared: the columns (of COLUMNS and INSTANTS) that have one value for all runs.
        each: the columns that come as arrays, with one element for each run; without any of them,
            the statement inserts one run.
    """
    return _insert(tuple(shared), tuple(each))


@lru_cache
def _insert(shared: tuple[str, ...], each: tuple[str, ...]) -> str:
    named = {*shared, *each}
    plain = ", ".join(name for name in COLUMNS if name in named)
    default = {name: name if name in named else f"NULL::{TYPES[name]}" for name in INSTANTS}
    values = ", ".join(f"%({name})s::{TYPES[name]} AS {name}" for name in shared)
    source = f"(SELECT {values}) AS shared"
    if each:
        slots = ", ".join(f"%({name})s::{TYPES[name]}[]" for name in each)
        source += f", unnest({slots}) AS each ({', '.join(each)})"
    return f"""
INSERT INTO scheduling_run ({plain}, run_at, due_at, deadline, expires_at)
SELECT {plain}, start, COALESCE({default["due_at"]}, start),
     COALESCE({default["deadline"]}, statement_timestamp() + {default["deadline_in"]}),
     COALESCE({default["expires"]}, statement_timestamp() + {default["expires_in"]})
  FROM (SELECT *, COALESCE({default["at"]}, statement_timestamp() + {default["after"]}) AS start
          FROM {source}) AS call
"""  # noqa: S608 (names of columns only)


def insert_one(columns: Mapping[str, Any]) -> UUID:
    """Insert one run and ring on commit; in one round trip if no transaction is open.

    Raises:
        RunExistsError: there is a run with this id.
    """
    run_id: UUID = columns["id"]
    if not run_alone(f"{insert(columns)} {KEPT} id", columns):
        raise RunExistsError(run_id)
    ring_on_commit(waited(columns))
    return run_id


def insert_run(columns: Mapping[str, Any]) -> Run:
    """Insert one run and ring on commit; return it, or the unfinished one with its unique key."""
    parameters = {"id": uuid7(), **columns}
    while True:
        rows = list(Run.objects.raw(f"{insert(parameters)} {KEPT} *", parameters))
        if rows:
            ring_on_commit(waited(columns))
            return _with_created(rows[0], created=True)
        key = columns.get("unique_key")
        if key is None:
            raise RunExistsError(parameters["id"])
        found = Run.objects.filter(unique_key=key, state__in=UNFINISHED).first()
        if found is not None:
            return _with_created(found, created=False)


def waited(columns: Mapping[str, Any]) -> float | None:
    """Return for how long the run might have started: not at all, or as long as its call says."""
    return 0.0 if columns["at"] is None else None


def _with_created(run: Run, *, created: bool) -> Run:
    run.created = created
    return run
