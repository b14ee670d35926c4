"""Every target window has its run: the rows of schedules against the oracle."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta

from chaos.laws import Breach, named
from chaos.oracle import instants, is_off, slack
from chaos.story import Phase, Row, Schedule, Story


def windows(story: Story) -> Iterator[Breach]:
    rows = defaultdict[int, list[Row]](list)
    for row in story.rows:
        if row.origin == "schedule":
            rows[row.schedule_id or 0].append(row)
    for schedule in story.schedules:
        yield from _windows_of(schedule, sorted(rows.pop(schedule.id, []), key=lambda r: r.due_at))
    for strays in rows.values():
        for row in strays:
            yield Breach("unexplained row", f"{named(row)} is of no schedule that was made")


def _windows_of(schedule: Schedule, rows: list[Row]) -> Iterator[Breach]:
    explained = 0
    for phase in schedule.phases:
        more = timedelta(0) if phase.rule is None else slack(phase.rule)
        inside = [row for row in rows if phase.since - more < row.due_at <= phase.until + more]
        explained += len(inside)
        yield from _windows_in(schedule, phase, inside)
        yield from _days_off(phase, inside)
    if explained < len(rows):
        yield Breach("unexplained row", f"{schedule.name}: {len(rows) - explained} rows too many")


def _windows_in(schedule: Schedule, phase: Phase, rows: list[Row]) -> Iterator[Breach]:
    """Walk through a phase's instants: each row stands for one, and for those it has coalesced."""
    expected, more = list[datetime](), timedelta(0)
    if phase.rule is not None:
        expected = instants(phase.rule, phase.since, phase.until, phase.off)
        more = slack(phase.rule)
    place = 0
    for row in rows:
        at = bisect_left(expected, row.due_at - more)
        if at == len(expected) or abs(expected[at] - row.due_at) > more:
            yield Breach("unexplained row", f"{named(row)} is due at no instant of its rule")
            continue
        if at < place:
            yield Breach("doubled", f"{named(row)} stands for what another row stands for")
        yield from _missing(schedule, expected[place:at], f"before {named(row)}")
        place = at + 1 + row.coalesced
        if place > len(expected):
            yield Breach("unexplained row", f"{named(row)} counts more than there were")
        elif expected[place - 1] > row.created_at + more:
            yield Breach("early", f"{named(row)} was made before what it stands for was due")
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


def _days_off(phase: Phase, rows: list[Row]) -> Iterator[Breach]:
    """What is due on a day off is skipped, and says so; nothing else says that."""
    for row in rows:
        if row.created_at >= phase.until:  # by the days of before the edit, or of after it
            continue
        off = phase.off is not None and is_off(phase.off, row.due_at)
        skipped = row.state == "skipped" and row.reason.startswith("calendar ")
        late = row.state == "skipped" and row.reason.startswith("missed")
        if off and not (skipped or late):
            yield Breach("day off", f"{named(row)} is {row.state} on a day off: {row.reason!r}")
        elif skipped and not off:
            yield Breach("day off", f"{named(row)} is skipped on a working day: {row.reason!r}")
