"""The history of a session, and its files, so that it can be checked again."""

import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from chaos import evidence
from chaos.oracle import Off, Rule

T = TypeVar("T")


@dataclass
class Phase:
    """A stretch of a schedule's life under one rule: since < t <= until. No rule: it is paused."""

    since: datetime
    until: datetime
    rule: Rule | None
    off: Off | None = None


@dataclass
class Schedule:
    """A schedule as its users treated it."""

    id: int
    name: str
    catch_up: str
    catch_up_window: float | None
    overlap: str
    spread: float
    max_attempts: int | None
    phases: list[Phase]


@dataclass
class Asked:
    """A call that made a run, or did not: `ended` is committed, found, rolled_back or unknown."""

    token: str
    not_before: float  # seconds since 1970
    ended: str
    max_attempts: int | None = None
    unique_key: str | None = None
    then: str = ""
    began: float = 0.0
    answered: float = 0.0
    found: str = ""  # the run that has its unique key


@dataclass
class Row:
    """A run as the ledger has it in the end, with its result's state and value."""

    id: str
    schedule_id: int | None
    origin: str
    task: str
    token: str
    due_at: datetime
    run_at: datetime
    state: str
    reason: str
    attempt: int
    failures: int
    max_attempts: int | None
    coalesced: int
    created_at: datetime
    finished_at: datetime | None
    expires_at: datetime | None
    unique_key: str | None
    errors: list[Any]
    result_status: str | None
    result: str | None
    deadline: datetime | None = None
    started_at: datetime | None = None
    late_by: float | None = None  # seconds
    replay_of: str | None = None
    backfill_id: str | None = None
    priority: int | None = None


@dataclass
class Cancel:
    """A cancel of a run, `granted` where the answer arrived: it `waited`, or an attempt ran."""

    run: str
    granted: bool = False
    waited: bool = False
    attempt: int = 0


@dataclass
class Replay:
    """A replay of a final run; `made` is None if no answer arrived: it may exist or not."""

    of: str
    made: str | None = None


@dataclass
class Fill:
    """A backfill of a range, by the rule of its time; asked for at `at`."""

    id: str
    schedule_id: int
    schedule: str
    rule: Rule
    off: Off | None
    since: datetime
    until: datetime
    concurrency: int
    again: bool
    at: datetime
    cancelled: bool = False  # a user has tried to
    cancelled_at: float | None = None  # when that had happened, if the answer arrived


@dataclass
class Anew:
    """A worker that said in its log that it starts itself anew, or hands this run back."""

    process: str
    at: float
    run: str = ""


@dataclass
class Done:
    """A fault as it happened: when it began and ended, and to whom."""

    kind: str
    target: str
    began: float
    ended: float
    what: str = ""


@dataclass
class Step:
    """A step of the ledger's clock, by `size` seconds; it was made between `began` and `ended`."""

    began: float
    ended: float
    size: float


@dataclass
class Story:
    """All of it."""

    seed: int
    seconds: float
    schedules: list[Schedule] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    faults: list[Done] = field(default_factory=list)
    # Processes that ended although no fault had targeted them.
    ended_by_themselves: list[str] = field(default_factory=list)
    lines: list[evidence.Line] = field(default_factory=list)
    anew: list[Anew] = field(default_factory=list)
    cancels: list[Cancel] = field(default_factory=list)
    replays: list[Replay] = field(default_factory=list)
    fills: list[Fill] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    settled_in: float = 0.0


def save(story: Story, place: Path) -> None:
    """Write a story, without its evidence, which lies in files beside it already."""
    fields = {name: value for name, value in asdict(story).items() if name != "lines"}
    for schedule, kept in zip(fields["schedules"], story.schedules, strict=True):
        for phase, real in zip(schedule["phases"], kept.phases, strict=True):
            if real.rule is not None:
                phase["rule"]["kind"] = type(real.rule).__name__
    for fill, asked in zip(fields["fills"], story.fills, strict=True):
        fill["rule"]["kind"] = type(asked.rule).__name__
    (place / "story.json").write_text(json.dumps(fields, default=_text, indent=1))


def load(place: Path) -> Story:
    """Read the story of a directory, and the evidence in it."""
    story = _read(Story, {**json.loads((place / "story.json").read_text()), "lines": []})
    story.lines = evidence.read(place / "evidence")
    return story


def _text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _read(kind: type[T], values: Mapping[str, Any]) -> T:
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], value) for name, value in values.items()})


def _value(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    if get_origin(hint) in (Union, types.UnionType):
        return _of_union(get_args(hint), value)
    if get_origin(hint) is list and isinstance(value, Sequence):
        return [_value(get_args(hint)[0], item) for item in value]
    if hint is datetime:
        return datetime.fromisoformat(value)
    return _read(hint, value) if is_dataclass(hint) and isinstance(hint, type) else value


def _of_union(kinds: Sequence[Any], value: Any) -> Any:
    if isinstance(value, dict) and "kind" in value:  # rules say which they are
        named = {kind.__name__: kind for kind in kinds}
        return _read(named[value["kind"]], {k: v for k, v in value.items() if k != "kind"})
    return _value(next(kind for kind in kinds if kind is not types.NoneType), value)
