"""Whether what happened is what was promised: in the manner of Jepsen's test of Chronos.

Pure: a story goes in, breaches come out, each with the law it breaks and whom it concerns. It takes
the jobs' own evidence for what ran, the oracle for what should have run, and asks the ledger for
the reason wherever the two differ.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import NamedTuple

from chaos.evidence import Line
from chaos.oracle import instants, slack
from chaos.story import Asked, Phase, Row, Schedule, Story

FINAL = {"succeeded", "failed", "cancelled", "expired", "skipped"}
DEFAULT_ATTEMPTS = 3  # settings.DEFAULT_MAX_ATTEMPTS, and one more than `retrying` says
CLOCK = 0.002  # seconds by which two readings of one machine's clock may differ
# A beat may be frozen for this long between looking at a schedule's runs and writing the next one.
FROZEN = timedelta(seconds=12)
# What may end an attempt in failure: the job itself, or the loss of its worker.
EXPECTED_ERRORS = ("Deliberate:", "WorkerLostError:", "Terminated:")


class Breach(NamedTuple):
    """A promise that was not kept: which one, and what shows it."""

    law: str
    what: str

    def __str__(self) -> str:
        return f"{self.law}: {self.what}"


def check(story: Story) -> list[Breach]:
    """Return every breach in a story."""
    evidence = defaultdict[str, list[Line]](list)
    for line in story.lines:
        evidence[line.run].append(line)
    rows = {row.id: row for row in story.rows}
    found = [
        *_windows(story),
        *_calls(story),
        *_follow_ups(story, evidence),
        *_alone(story, evidence),
        *(Breach("phantom", f"run {run} has no row") for run in evidence.keys() - rows.keys()),
        *(Breach("beat ended", at) for at in story.ended_by_themselves if at.startswith("beat")),
    ]
    schedules = {schedule.id: schedule for schedule in story.schedules}
    asked = {asked.token: asked for asked in story.asked}
    stopped = _stops(story)
    for row in story.rows:
        schedule = schedules.get(row.schedule_id or 0)
        lines = evidence[row.id]
        found += _state(row, schedule, asked.get(row.token), lines)
        found += _starts(row, lines, stopped)
        found += _early(row, schedule, asked.get(row.token), lines)
    return found


# --- Every target window has its run -------------------------------------------------------------


def _windows(story: Story) -> Iterator[Breach]:
    rows = defaultdict[int, list[Row]](list)
    for row in story.rows:
        if row.origin == "schedule":
            rows[row.schedule_id or 0].append(row)
    for schedule in story.schedules:
        yield from _windows_of(schedule, sorted(rows.pop(schedule.id, []), key=lambda r: r.due_at))
    for strays in rows.values():
        for row in strays:
            yield Breach("unexplained row", f"{_named(row)} is of no schedule that was made")


def _windows_of(schedule: Schedule, rows: list[Row]) -> Iterator[Breach]:
    explained = 0
    for phase in schedule.phases:
        more = timedelta(0) if phase.rule is None else slack(phase.rule)
        inside = [row for row in rows if phase.since - more < row.due_at <= phase.until + more]
        explained += len(inside)
        yield from _windows_in(schedule, phase, inside)
    if explained < len(rows):
        yield Breach("unexplained row", f"{schedule.name}: {len(rows) - explained} rows too many")


def _windows_in(schedule: Schedule, phase: Phase, rows: list[Row]) -> Iterator[Breach]:
    """Walk through a phase's instants: each row stands for one, and for those it has coalesced."""
    expected = [] if phase.rule is None else instants(phase.rule, phase.since, phase.until)
    more = timedelta(0) if phase.rule is None else slack(phase.rule)
    place = 0
    for row in rows:
        at = bisect_left(expected, row.due_at - more)
        if at == len(expected) or abs(expected[at] - row.due_at) > more:
            yield Breach("unexplained row", f"{_named(row)} is due at no instant of its rule")
            continue
        if at < place:
            yield Breach("doubled", f"{_named(row)} stands for what another row stands for")
        yield from _missing(schedule, expected[place:at], f"before {_named(row)}")
        place = at + 1 + row.coalesced
        if place > len(expected):
            yield Breach("unexplained row", f"{_named(row)} counts more than there were")
        elif expected[place - 1] > row.created_at + more:
            yield Breach("early", f"{_named(row)} was made before what it stands for was due")
    if place < len(expected) and not _edited_in_arrears(phase, rows):
        yield from _missing(schedule, expected[place:], f"until {phase.until}")


def _edited_in_arrears(phase: Phase, rows: list[Row]) -> bool:
    """Whether the edit that ended a phase came between an instant and its firing.

    That instant fires as it was planned. What would have followed it before the edit had not been
    planned yet, and is the old rule's, which nobody has any more.
    """
    return bool(rows) and rows[-1].created_at >= phase.until


def _missing(schedule: Schedule, expected: list[datetime], where: str) -> Iterator[Breach]:
    if expected:
        times = ", ".join(f"{instant:%H:%M:%S.%f}" for instant in expected[:3])
        yield Breach("missing", f"{schedule.name}: {len(expected)} without a run: {times} {where}")


# --- Every call has its run ----------------------------------------------------------------------


def _calls(story: Story) -> Iterator[Breach]:
    rows = Counter(row.token for row in story.rows if row.origin != "schedule")
    for asked in story.asked:
        count = rows.pop(asked.token, 0)
        if asked.ended == "committed" and count != 1:
            yield Breach("missing", f"{asked.token} was committed and has {count} runs")
        elif asked.ended in ("rolled_back", "found") and count:
            yield Breach("unexplained row", f"{asked.token} was {asked.ended} and has {count} runs")
        elif count > 1:
            yield Breach("doubled", f"{asked.token} has {count} runs")
        if asked.then == "chord" and rows.pop(f"{asked.token}/other", 0) != count:
            yield Breach(
                "missing", f"{asked.token} has {count} runs, and the rest of its chord not"
            )
    followers = {f"{asked.token}/{name}" for asked in story.asked for name in FOLLOWERS[asked.then]}
    for token in rows.keys() - followers:
        yield Breach("unexplained row", f"nobody asked for {token}")


# What may follow a call, by what came `then`.
FOLLOWERS = {"": (), "link": ("link", "error"), "chord": ("body",)}


def _follow_ups(story: Story, evidence: dict[str, list[Line]]) -> Iterator[Breach]:
    """What an end sets off is there once, if and only if it ended so; and starts after it."""
    by_token = defaultdict[str, list[Row]](list)
    for row in story.rows:
        by_token[row.token].append(row)
    for asked in (asked for asked in story.asked if asked.then):
        first = by_token[asked.token] + by_token[f"{asked.token}/other"]
        good = bool(first) and all(row.state == "succeeded" for row in first)
        expected = {"link": good, "error": bool(first) and not good, "body": good}
        for name in FOLLOWERS[asked.then]:
            found = by_token[f"{asked.token}/{name}"]
            if len(found) != expected[name]:
                states = ", ".join(f"{_named(row)} is {row.state}" for row in first)
                yield Breach("follow-up", f"{name} has {len(found)} runs: {states}")
            ended = max((_end(row) for row in first), default=0.0)
            for row in found:
                if any(line.at < ended - CLOCK for line in evidence[row.id]):
                    yield Breach("early", f"{_named(row)} began before what it follows had ended")


def _end(row: Row) -> float:
    return row.finished_at.timestamp() if row.finished_at else 0.0


# --- Every run is final, for a reason ------------------------------------------------------------


def _state(
    row: Row, schedule: Schedule | None, asked: Asked | None, lines: list[Line]
) -> Iterator[Breach]:
    if row.state not in FINAL:
        yield Breach("not final", f"{_named(row)} is {row.state}")
        return
    problem = _unexplained(row, schedule, asked)
    if problem:
        yield Breach("unexplained end", f"{_named(row)} is {row.state}: {problem}")
    ended = {line.attempt for line in lines if line.what == "end"}
    if row.state == "succeeded" and row.attempt not in ended:
        yield Breach(
            "no evidence", f"{_named(row)} succeeded and attempt {row.attempt} never ended"
        )
    if row.state == "succeeded" and row.result != str(row.attempt):
        yield Breach("fence", f"{_named(row)} has the result of attempt {row.result}")
    if row.state == "skipped" and lines:
        yield Breach("unexplained start", f"{_named(row)} is skipped and was started")
    status = {"succeeded": "SUCCESS", "failed": "FAILURE"}.get(row.state)
    if status and row.result_status != status:
        yield Breach("fence", f"{_named(row)} is {row.state} and its result {row.result_status}")
    for error in row.errors:
        if not error["error"].startswith(EXPECTED_ERRORS):
            yield Breach("unexplained error", f"{_named(row)}: {error['error'][:200]}")
    tried = [error["attempt"] for error in row.errors]
    if tried != sorted(set(tried)) or any(attempt > row.attempt for attempt in tried):
        yield Breach("fence", f"{_named(row)} has errors of the attempts {tried}")


def _unexplained(row: Row, schedule: Schedule | None, asked: Asked | None) -> str:
    """Return what is wrong with the reason that a run gives for its end, or ""."""
    overlap = schedule.overlap if schedule else ""
    if row.state == "skipped":
        if row.reason.startswith("overlap"):
            return f"but overlap is {overlap}" if overlap in ("", "allow") else ""
        late = schedule and schedule.catch_up in ("all", "none")
        return "" if row.reason.startswith("missed") and late else f"why? {row.reason!r}"
    if row.coalesced and schedule and schedule.catch_up == "all":
        return f"it has coalesced {row.coalesced}, and catch_up is all"
    if row.state == "cancelled":
        wanted = overlap == "replace" or (asked is not None and asked.cancelled)
        return "" if wanted else f"nobody asked for it: {row.reason!r}"
    if row.state == "expired":
        passed = row.expires_at and row.finished_at and row.finished_at >= row.expires_at
        return "" if passed else "before its time"
    allowed = _allowed(row)
    # Celery's own `max_retries` may end it sooner.
    least = min(allowed, DEFAULT_ATTEMPTS) if row.task.endswith("retrying") else allowed
    if row.state == "failed" and row.failures < least:
        return f"after {row.failures} failures of {allowed}: {row.reason!r}"
    if row.failures > allowed:
        return f"after {row.failures} failures of {allowed}"
    return ""


def _allowed(row: Row) -> int:
    return DEFAULT_ATTEMPTS if row.max_attempts is None else row.max_attempts


# --- None is early, none doubled -----------------------------------------------------------------


def _starts(row: Row, lines: list[Line], stopped: dict[str, list[float]]) -> Iterator[Breach]:
    starts = sorted((line for line in lines if line.what == "start"), key=lambda line: line.attempt)
    if _allowed(row) == 1 and len(starts) > 1:
        yield Breach("doubled", f"{_named(row)} may start once, and started {len(starts)} times")
    lost = {error["attempt"] for error in row.errors}
    for first, second in pairwise(starts):
        if first.attempt == second.attempt:
            yield Breach("doubled", f"{_named(row)}: attempt {first.attempt} started twice")
        elif first.attempt not in lost and not _handed_back(first, second, stopped):
            yield Breach(
                "doubled",
                f"{_named(row)}: attempt {second.attempt} started, and nothing says what became"
                f" of attempt {first.attempt}",
            )
    if starts and starts[-1].attempt > row.attempt:
        yield Breach("fence", f"{_named(row)}: attempt {starts[-1].attempt} started unrecorded")


def _handed_back(first: Line, second: Line, stopped: dict[str, list[float]]) -> bool:
    """Whether the worker of `first` was told to stop before `second` began."""
    return any(first.at - 60 < at < second.at for at in stopped.get(first.process, []))


def _stops(story: Story) -> dict[str, list[float]]:
    stopped = defaultdict[str, list[float]](list)
    for fault in story.faults:
        if fault.kind == "stop_worker":
            stopped[f"worker{fault.target}"].append(fault.began)
    return stopped


def _early(
    row: Row, schedule: Schedule | None, asked: Asked | None, lines: list[Line]
) -> Iterator[Breach]:
    offset = row.run_at - row.due_at if row.attempt == 1 else timedelta(0)
    if schedule and not timedelta(0) <= offset <= timedelta(seconds=schedule.spread):
        # A waiting run that was sent back (its task was unknown) would differ, too: none is here.
        yield Breach("early", f"{_named(row)} is spread by {offset}")
    earliest = max((row.due_at + offset).timestamp(), asked.not_before if asked else 0.0)
    for line in lines:
        if line.what == "start" and line.at < earliest - CLOCK:
            at = datetime.fromtimestamp(line.at, UTC)
            yield Breach("early", f"{_named(row)} started at {at:%H:%M:%S.%f}")


# --- Those that exclude each other ---------------------------------------------------------------


def _alone(story: Story, evidence: dict[str, list[Line]]) -> Iterator[Breach]:
    """Runs of a schedule that may not overlap, and runs with one unique key."""
    groups = defaultdict[str, list[Row]](list)
    overlap = {schedule.id: schedule.overlap for schedule in story.schedules}
    for row in story.rows:
        if overlap.get(row.schedule_id or 0, "allow") != "allow":
            groups[f"schedule {row.schedule_id}"].append(row)
        if row.unique_key:
            groups[f"key {row.unique_key}"].append(row)
    for name, rows in groups.items():
        begun = [(_first_start(evidence[row.id]), row) for row in rows if evidence[row.id]]
        begun.sort(key=lambda pair: pair[0])
        for (_, earlier), (start, later) in pairwise(begun):
            if earlier.finished_at and start < earlier.finished_at.timestamp() - CLOCK:
                yield Breach("overlap", f"{name}: {_named(later)} began during {_named(earlier)}")
    skipped = (row for row in story.rows if row.state == "skipped" and "overlap" in row.reason)
    for row in skipped:
        others = groups[f"schedule {row.schedule_id}"]
        if not any(_was_unfinished(other, row) for other in others):
            yield Breach(
                "unexplained end", f"{_named(row)} was skipped, and nothing was unfinished"
            )


def _first_start(lines: list[Line]) -> float:
    return min(line.at for line in lines)


def _was_unfinished(other: Row, at: Row) -> bool:
    if other.id == at.id or other.created_at > at.created_at or other.state == "skipped":
        return False
    return other.finished_at is None or other.finished_at > at.created_at - FROZEN


def _named(row: Row) -> str:
    return f"run {row.id} ({row.token}, due {row.due_at:%H:%M:%S.%f})"
