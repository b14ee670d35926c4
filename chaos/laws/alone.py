"""Those that exclude each other: runs of a schedule that may not overlap, and of one unique key."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from chaos.evidence import Line
from chaos.laws import CLOCK, FROZEN, Breach, named
from chaos.story import Row, Story


def alone(story: Story, evidence: dict[str, list[Line]]) -> Iterator[Breach]:
    groups = defaultdict[str, list[Row]](list)
    of_schedule = defaultdict[int, list[Row]](list)
    overlap = {schedule.id: schedule.overlap for schedule in story.schedules}
    for row in story.rows:
        if row.backfill_id is None:
            of_schedule[row.schedule_id or 0].append(row)
        # A replay starts whatever its schedule does; that waits for it.
        if row.origin == "schedule" and overlap.get(row.schedule_id or 0, "allow") != "allow":
            groups[f"schedule {row.schedule_id}"].append(row)
        if row.unique_key:
            groups[f"key {row.unique_key}"].append(row)
    for name, rows in groups.items():
        begun = [(_first_start(evidence[row.id]), row) for row in rows if evidence[row.id]]
        begun.sort(key=lambda pair: pair[0])
        for (_, earlier), (start, later) in pairwise(begun):
            if earlier.finished_at and start < earlier.finished_at.timestamp() - CLOCK:
                yield Breach("overlap", f"{name}: {named(later)} began during {named(earlier)}")
    skipped = (row for row in story.rows if row.state == "skipped" and "overlap" in row.reason)
    for row in skipped:
        if not any(_was_unfinished(other, row) for other in of_schedule[row.schedule_id or 0]):
            yield Breach("unexplained end", f"{named(row)} was skipped, and nothing was unfinished")


def _first_start(lines: list[Line]) -> float:
    return min(line.at for line in lines)


def _was_unfinished(other: Row, at: Row) -> bool:
    if other.id == at.id or other.created_at > at.created_at or other.state == "skipped":
        return False
    return other.finished_at is None or other.finished_at > at.created_at - FROZEN
