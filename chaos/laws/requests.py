"""Requests by users: cancels, replays, backfills."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime
from itertools import accumulate

from chaos.clock import Clock
from chaos.evidence import Line
from chaos.laws import CLOCK, FROZEN, MOMENT, Breach, claims, named
from chaos.oracle import instants, is_off
from chaos.story import Fill, Row, Story


def cancels(story: Story, evidence: dict[str, list[Line]]) -> Iterator[Breach]:
    """No attempt begins that was not running already when the cancel was granted."""
    rows = {row.id: row for row in story.rows}
    for cancel in story.cancels:
        row = rows.get(cancel.run)
        if row is None or not cancel.granted:
            continue
        if cancel.waited and row.state != "cancelled":
            yield Breach("cancel", f"{named(row)} was cancelled, and is {row.state}")
        last = cancel.attempt - 1 if cancel.waited else cancel.attempt
        for line in evidence[row.id]:
            if line.what == "start" and line.attempt > last:
                yield Breach("cancel", f"{named(row)}: attempt {line.attempt} of a cancelled run")


def replays(story: Story) -> Iterator[Breach]:
    """Each replay is one run, which names the run that it repeats."""
    rows = Counter((row.replay_of, row.id) for row in story.rows if row.origin == "replay")
    unknown = Counter[str]()
    for replay in story.replays:
        if replay.made is None:
            unknown[replay.of] += 1
        elif not rows.pop((replay.of, replay.made), 0):
            yield Breach("missing", f"the replay {replay.made} of run {replay.of} has no row")
    for (of, run), _ in rows.items():
        unknown[of or ""] -= 1
        if unknown[of or ""] < 0:
            yield Breach("unexplained row", f"no user asked for the replay {run} of run {of}")


def backfills(story: Story, evidence: dict[str, list[Line]], clock: Clock) -> Iterator[Breach]:
    """Each occurrence of a range has one run, never more at a time than its concurrency."""
    filled, of_schedule = defaultdict[str, list[Row]](list), defaultdict[int, list[Row]](list)
    for row in story.rows:
        of_schedule[row.schedule_id or 0].append(row)
        if row.origin == "backfill":
            filled[row.backfill_id or ""].append(row)
    for fill in story.fills:
        rows = filled.pop(fill.id, [])
        yield from _range(fill, rows, of_schedule[fill.schedule_id], clock)
        yield from _pace(fill, rows, evidence, clock)
        yield from _after_its_cancel(fill, rows, evidence, clock)
    for backfill in filled:
        yield Breach("unexplained row", f"no user asked for backfill {backfill}")


def _range(fill: Fill, rows: list[Row], others: list[Row], clock: Clock) -> Iterator[Breach]:
    expected = instants(fill.rule, fill.since - MOMENT, fill.until, fill.off)
    if fill.off is not None:
        expected = [instant for instant in expected if not is_off(fill.off, instant)]
    found = Counter(row.due_at for row in rows)
    for instant, count in found.items():
        if instant not in expected:
            yield Breach("unexplained row", f"{_called(fill)} has {instant}, which is none of its")
        if count > 1:
            yield Breach("doubled", f"{_called(fill)} has {count} runs of {instant}")
    for instant in expected:
        if instant not in found and not any(
            _dealt_with(instant, row, fill, clock) for row in others
        ):
            yield Breach("missing", f"{_called(fill)} has no run of {instant}")


def _dealt_with(instant: datetime, row: Row, fill: Fill, clock: Clock) -> bool:
    """Whether a backfill may leave an instant out for the sake of another run."""
    if row.backfill_id == fill.id:
        return False
    asked = fill.at.timestamp()
    made = clock.latest(row.created_at)
    if (
        row.origin == "schedule"
        and row.due_at <= instant
        and made >= asked - FROZEN.total_seconds()
    ):
        return True  # it was due and not fired yet: beat's to do
    done = row.state == "succeeded" or row.finished_at is None
    done = done or (row.finished_at is not None and clock.latest(row.finished_at) >= asked)
    return row.due_at == instant and done and not fill.again


def _pace(
    fill: Fill, rows: list[Row], evidence: dict[str, list[Line]], clock: Clock
) -> Iterator[Breach]:
    """A run has its place from before its first start until it is final, its retries included."""
    changes = list[tuple[float, int]]()
    for row in rows:
        if row.finished_at and evidence[row.id]:
            begun = min(line.at for line in evidence[row.id])
            written = max(line.at for line in evidence[row.id])
            ended = clock.earliest(row.finished_at, after=written) - CLOCK
            changes += [(begun, 1), (max(begun, ended), -1)]
    together = max(accumulate((change for _, change in sorted(changes)), initial=0))
    if together > fill.concurrency:
        yield Breach("pace", f"{_called(fill)} ran {together} at once, of {fill.concurrency}")


def _after_its_cancel(
    fill: Fill, rows: list[Row], evidence: dict[str, list[Line]], clock: Clock
) -> Iterator[Breach]:
    if fill.cancelled_at is None:
        return
    for row in rows:
        claimed = [clock.earliest(claim) for claim in claims(row, evidence[row.id])]
        if any(claim > fill.cancelled_at for claim in claimed):
            yield Breach("cancel", f"{named(row)} began after {_called(fill)} was cancelled")


def _called(fill: Fill) -> str:
    return f"backfill {fill.id} of {fill.schedule}"
