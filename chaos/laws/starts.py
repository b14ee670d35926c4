"""No run starts early or twice: each second start is explained by the end of the first."""

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from chaos.clock import Clock
from chaos.evidence import Line
from chaos.laws import CLOCK, Breach, allowed, begun, instant, named
from chaos.story import Anew, Asked, Row, Schedule, Story

# A worker may be frozen for this long between the claim of a run and the first line of its job.
UNBEGUN = 20.0  # seconds


class Stops:
    """When workers were stopped, were frozen, or logged that they restart themselves."""

    def __init__(self, story: Story) -> None:
        self._told = defaultdict[str, list[float]](list)
        self._anew = defaultdict[str, list[Anew]](list)
        self._frozen = [fault for fault in story.faults if fault.kind.startswith("freeze_")]
        for fault in story.faults:
            if fault.kind == "stop_worker":
                self._told[f"worker{fault.target}"].append(fault.began)
        for anew in story.anew:
            self._anew[anew.process].append(anew)

    def explain(self, first: Line, second: Line) -> bool:
        """Whether the worker of `first` may have handed its run back before `second` began."""
        if any(first.at - 60 < at < second.at for at in self._told[first.process]):
            return True
        return any(
            first.at - CLOCK < anew.at < second.at + CLOCK and anew.run in ("", first.run)
            for anew in self._anew[first.process]
        )

    def froze(self, first: Line, last: Line) -> bool:
        """Whether a process was stopped between two lines: it wakes up before it can be ended."""
        return any(
            fault.what.startswith(f"{first.process} ")
            and fault.began < last.at
            and fault.ended > first.at
            for fault in self._frozen
        )


def starts(row: Row, lines: list[Line], stops: Stops, clock: Clock) -> Iterator[Breach]:
    all_starts = begun(lines)
    if allowed(row) == 1 and len(all_starts) > 1:
        yield Breach("doubled", f"{named(row)} may start once, and started {len(all_starts)} times")
    ended = {error["attempt"]: error.get("ended_at") for error in row.errors}
    for first, second in pairwise(all_starts):
        if first.attempt == second.attempt:
            yield Breach("doubled", f"{named(row)}: attempt {first.attempt} started twice")
        elif first.attempt in ended:
            at = ended[first.attempt]
            if at and second.at < clock.earliest(instant(at), after=first.at) - CLOCK:
                yield Breach(
                    "doubled",
                    f"{named(row)}: attempt {second.attempt} started before {first.attempt} was"
                    " given up",
                )
        elif not stops.explain(first, second):
            yield Breach(
                "doubled",
                f"{named(row)}: attempt {second.attempt} started, and no entry says how"
                f" attempt {first.attempt} ended",
            )
    yield from _at_work_twice(row, lines, stops)
    if all_starts and all_starts[-1].attempt > row.attempt:
        yield Breach("fence", f"{named(row)}: attempt {all_starts[-1].attempt} started unrecorded")


def _at_work_twice(row: Row, lines: list[Line], stops: Stops) -> Iterator[Breach]:
    """No attempt is at work when a later one starts: by the machine's clock alone."""
    last = {line.attempt: line for line in lines if line.what != "start"}
    for first, second in pairwise(begun(lines)):
        finished = last.get(first.attempt)
        if finished is None or first.attempt == second.attempt or stops.froze(first, finished):
            continue
        if second.at < finished.at - CLOCK:
            yield Breach(
                "twice",
                f"{named(row)}: attempt {first.attempt} was at work until"
                f" {finished.at - second.at:.3f} s after {second.attempt} had started",
            )


def early(
    row: Row, schedule: Schedule | None, asked: Asked | None, lines: list[Line], clock: Clock
) -> Iterator[Breach]:
    """No attempt starts before its time: by Postgres's clock, and by the job's own evidence.

    Runs that came due before a step back may still start after it.
    """
    offset = row.run_at - row.due_at if row.attempt == 1 else timedelta(0)
    if offset < timedelta(0) and clock.showed_again(row.due_at):
        offset = timedelta(0)  # it waited in a queue while the clock was stepped back
    if schedule and not timedelta(0) <= offset <= timedelta(seconds=schedule.spread):
        # A waiting run that was sent back (its task was unknown) would differ, too: none is here.
        yield Breach("early", f"{named(row)} is spread by {offset}")
    if row.started_at and row.started_at < row.run_at:
        yield Breach("early", f"{named(row)} was claimed at {row.started_at:%H:%M:%S.%f}")
    due = max((row.due_at + offset).timestamp(), _not_before(asked, clock) if asked else 0.0)
    for line in begun(lines):
        is_early = clock.highest(line.at) < due - CLOCK
        if line.attempt == row.attempt:  # a retry has a time of its own
            claimed = clock.highest(line.at, within=UNBEGUN)
            is_early = is_early or claimed < row.run_at.timestamp() - CLOCK
        if is_early:
            at = datetime.fromtimestamp(line.at, UTC)
            yield Breach("early", f"{named(row)} started at {at:%H:%M:%S.%f}")


def _not_before(asked: Asked, clock: Clock) -> float:
    """Return the instant that was asked for by the ledger's clock: so long after the call."""
    called = clock.lowest(asked.began, max(asked.began, asked.answered))
    return called + asked.not_before - asked.began
