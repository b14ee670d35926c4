"""Exclusion: runs of a schedule that must not overlap, and runs of one unique key."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from chaos.clock import Clock
from chaos.evidence import Line
from chaos.laws import CLOCK, FROZEN, Breach, named
from chaos.story import Row, Story


def alone(story: Story, evidence: dict[str, list[Line]], clock: Clock) -> Iterator[Breach]:
    groups = defaultdict[str, list[Row]](list)
    of_schedule = defaultdict[int, list[Row]](list)
    overlap = {schedule.id: schedule.overlap for schedule in story.schedules}
    for row in story.rows:
        if row.backfill_id is None:
            of_schedule[row.schedule_id or 0].append(row)
        # A replay starts beside its schedule's runs; the schedule waits for it.
        if row.origin == "schedule" and overlap.get(row.schedule_id or 0, "allow") != "allow":
            groups[f"schedule {row.schedule_id}"].append(row)
        if row.unique_key:
            groups[f"key {row.unique_key}"].append(row)
    for name, rows in groups.items():
        begun = [(_first_start(evidence[row.id]), row) for row in rows if evidence[row.id]]
        begun.sort(key=lambda pair: pair[0])
        for (_, earlier), (start, later) in pairwise(begun):
            if earlier.finished_at is None:
                continue
            written = max(line.at for line in evidence[earlier.id])
            if start < clock.earliest(earlier.finished_at, after=written) - CLOCK:
                yield Breach("overlap", f"{name}: {named(later)} began during {named(earlier)}")
    skipped = (row for row in story.rows if row.state == "skipped" and "overlap" in row.reason)
    for row in skipped:
        if not any(
            _was_unfinished(other, row, clock) for other in of_schedule[row.schedule_id or 0]
        ):
            yield Breach("unexplained end", f"{named(row)} was skipped, and nothing was unfinished")


def _first_start(lines: list[Line]) -> float:
    return min(line.at for line in lines)


def _was_unfinished(other: Row, at: Row, clock: Clock) -> bool:
    if other.id == at.id or other.state == "skipped":
        return False
    if clock.earliest(other.created_at) > clock.latest(at.created_at):
        return False
    if other.finished_at is None:
        return True
    skipped = clock.earliest(at.created_at) - FROZEN.total_seconds()
    return clock.latest(other.finished_at) > skipped
