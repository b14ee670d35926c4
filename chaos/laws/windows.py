"""Every target window has its run: the rows of schedules against the oracle.

All by the ledger's clock. A step forward is an outage of all beats: catch-up decides about the
instants that it leaves out. After a step back, instants that have a run do not get another one. If
a schedule is edited within seconds that the clock shows twice, instants of both rules may have runs
there. For those seconds (`Doubt`) only this is asked: each row is due at an instant of one of the
rules, and no two rows at the same one.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise

from chaos.clock import Clock
from chaos.laws import FROZEN, MOMENT, Breach, named
from chaos.oracle import instants, is_off, slack
from chaos.story import Phase, Row, Schedule, Story

# A beat plans a fired schedule in the same tick; a tick of a busy machine takes this long.
PLANNED_WITHIN = timedelta(seconds=1)


class Doubt:
    """The stretches of a schedule's life that the clock showed twice and that hold an edit."""

    def __init__(self, schedule: Schedule, clock: Clock) -> None:
        self._rules = [(phase.rule, phase.off) for phase in schedule.phases if phase.rule]
        edits = [phase.since.timestamp() for phase in schedule.phases[1:]]
        edits.append(schedule.phases[-1].until.timestamp())
        self._stretches = [
            (low, high) for low, high in clock.rewound if any(low <= edit <= high for edit in edits)
        ]

    def of(self, instant: datetime) -> bool:
        return any(low <= instant.timestamp() <= high for low, high in self._stretches)

    def excuses(self, row: Row) -> bool:
        """Whether a row of a stretch in doubt is due at an instant of any of the rules."""
        if not self.of(row.due_at):
            return False
        return any(
            instants(rule, row.due_at - slack(rule) - MOMENT, row.due_at + slack(rule), off)
            for rule, off in self._rules
        )


def windows(story: Story, clock: Clock) -> Iterator[Breach]:
    rows = defaultdict[int, list[Row]](list)
    for row in story.rows:
        if row.origin == "schedule":
            rows[row.schedule_id or 0].append(row)
    for schedule in story.schedules:
        of_schedule = sorted(rows.pop(schedule.id, []), key=lambda row: row.due_at)
        yield from _windows_of(schedule, of_schedule, clock)
    for strays in rows.values():
        for row in strays:
            yield Breach("unexplained row", f"{named(row)} is of no schedule that was made")


def _windows_of(schedule: Schedule, rows: list[Row], clock: Clock) -> Iterator[Breach]:
    explained, doubt = set[str](), Doubt(schedule, clock)
    for phase in schedule.phases:
        more = timedelta(0) if phase.rule is None else slack(phase.rule)
        inside = [row for row in rows if phase.since - more < row.due_at <= phase.until + more]
        explained |= {row.id for row in inside}
        before = [row for row in rows if row.due_at <= phase.since][-1:]
        yield from _windows_in(schedule, phase, inside, doubt, clock, before)
        yield from _days_off(phase, [row for row in inside if not doubt.of(row.due_at)])
    explained |= {row.id for row in rows if doubt.excuses(row)}
    if len(explained) < len(rows):
        more_rows = len(rows) - len(explained)
        yield Breach("unexplained row", f"{schedule.name}: {more_rows} rows too many")
    for earlier, later in pairwise(rows):
        if earlier.due_at == later.due_at and doubt.of(later.due_at):
            yield Breach("doubled", f"{named(later)} has the instant of another row")


def _windows_in(
    schedule: Schedule,
    phase: Phase,
    rows: list[Row],
    doubt: Doubt,
    clock: Clock,
    before: list[Row],
) -> Iterator[Breach]:
    """Walk through a phase's instants: each row stands for one, and for those it has coalesced."""
    expected, more = list[datetime](), timedelta(0)
    if phase.rule is not None:
        expected = instants(phase.rule, phase.since, phase.until, phase.off)
        more = slack(phase.rule)
    place = 0
    for row in rows:
        at = bisect_left(expected, row.due_at - more)
        if at == len(expected) or abs(expected[at] - row.due_at) > more:
            if not doubt.excuses(row):
                yield Breach("unexplained row", f"{named(row)} is due at no instant of its rule")
            continue
        if at < place and not doubt.of(row.due_at):
            yield Breach("doubled", f"{named(row)} counts instants of another row")
        missed = [instant for instant in expected[place:at] if not doubt.of(instant)]
        yield from _missing(schedule, missed, f"before {named(row)}")
        place, shown = at + 1 + row.coalesced, _shown(row.created_at, clock) + more
        if any(map(doubt.of, [*expected[at:place], phase.until])):
            # It may count instants of another rule: of this one, only those due by then.
            place = min(place, max(at + 1, bisect_right(expected, shown)))
        elif place > len(expected):
            yield Breach("unexplained row", f"{named(row)} counts more than there were")
        elif expected[place - 1] > shown:
            yield Breach(
                "early", f"{named(row)} was made before the instants that it counts were due"
            )
    if place < len(expected) and not _edited_in_arrears(phase, rows or before):
        missed = [instant for instant in expected[place:] if not doubt.of(instant)]
        yield from _missing(schedule, missed, f"until {phase.until}")


def _shown(created_at: datetime, clock: Clock) -> datetime:
    """Return the highest that a beat may have read on the clock before it made a row."""
    made = clock.latest(created_at)
    shown = clock.highest(made, within=FROZEN.total_seconds())
    return max(created_at, datetime.fromtimestamp(shown, created_at.tzinfo))


def _edited_in_arrears(phase: Phase, rows: list[Row]) -> bool:
    """Whether the edit that ended a phase came between an instant and its firing.

    That instant fires as it was planned. The next instants before the edit had not been planned
    yet, and belong to the old rule, which no process knows any longer. The same holds if no instant
    of the phase has fired, and one from before it fired only as the phase ended.
    """
    return bool(rows) and rows[-1].created_at >= phase.until - PLANNED_WITHIN


def _missing(schedule: Schedule, expected: list[datetime], where: str) -> Iterator[Breach]:
    if expected:
        times = ", ".join(f"{instant:%H:%M:%S.%f}" for instant in expected[:3])
        yield Breach("missing", f"{schedule.name}: {len(expected)} without a run: {times} {where}")


def _days_off(phase: Phase, rows: list[Row]) -> Iterator[Breach]:
    """Occurrences on a day off are skipped with that reason; no other row has the reason."""
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
