"""Runs and moved plans that differ in their ids alone: each group is one row of parameters."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import NamedTuple

from scheduling.beat.deciding import Moved, NewRun
from scheduling.ids import uuid7_texts
from scheduling.models import State
from scheduling.runs.hints import Hint, Lane


class Runs(NamedTuple):
    """New runs that differ in their ids and schedules alone; `like` is the first of them."""

    like: NewRun
    ids: list[str]
    schedule_ids: list[int]

    def row(self) -> tuple[object, ...]:
        """Return the runs as one row, in the order of NewRun's fields."""
        _, _, *columns = self.like
        return (_literal(self.ids), _literal(self.schedule_ids), *columns)

    def hints(self, task: str) -> list[Hint]:
        like = self.like
        return [Hint(key, 1, task, like.queue, like.priority, like.options) for key in self.ids]


class Moves(NamedTuple):
    """Plans that move on in the same way; `like` is the first of them."""

    like: Moved
    schedule_ids: list[int]

    def row(self) -> tuple[object, ...]:
        """Return the plans as one row, in the order of Moved's fields."""
        _, *columns = self.like
        return (_literal(self.schedule_ids), *columns)


class Room:
    """How many hints each lane can take: runs that find room are written as queued at once.

    That saves the run a second version of its row: `publish` would queue it a moment later. A lane
    has room only if no run waits in it, so that order holds.
    """

    def __init__(self, room: Mapping[Lane, int]) -> None:
        self._room = dict(room)

    def divide(self, runs: Runs, now: datetime) -> Iterator[Runs]:
        """Yield the runs that may start now and have room, as queued, and then the others."""
        like, ids, schedule_ids = runs
        count = self._take(like, len(ids)) if _may_start(like, now) else 0
        if count:
            queued = like._replace(state=State.QUEUED)
            yield Runs(queued, ids[:count], schedule_ids[:count])
        if count < len(ids):
            yield Runs(like, ids[count:], schedule_ids[count:])

    def _take(self, run: NewRun, wanted: int) -> int:
        lane = Lane(run.queue, run.priority)
        left = self._room.get(lane, 0)
        taken = max(min(left, wanted), 0)
        if taken:
            self._room[lane] = left - taken
        return taken


def runs_for(run: NewRun, schedule_ids: list[int]) -> Runs:
    """Return a run for each schedule: the given one is the first schedule's."""
    return Runs(run, [str(run.id), *uuid7_texts(len(schedule_ids) - 1)], schedule_ids)


def _may_start(run: NewRun, now: datetime) -> bool:
    expired = run.expires_at is not None and run.expires_at <= now
    return run.state == State.SCHEDULED and run.run_at <= now and not expired


def _literal(values: Iterable[object]) -> str:
    return f"{{{','.join(map(str, values))}}}"
