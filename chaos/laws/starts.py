"""None is early, none doubled: each second start is explained by what became of the first."""

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from chaos.evidence import Line
from chaos.laws import CLOCK, Breach, allowed, begun, instant, named
from chaos.story import Anew, Asked, Row, Schedule, Story


class Stops:
    """When workers were told to end, or said that they start themselves anew."""

    def __init__(self, story: Story) -> None:
        self._told = defaultdict[str, list[float]](list)
        self._anew = defaultdict[str, list[Anew]](list)
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


def starts(row: Row, lines: list[Line], stops: Stops) -> Iterator[Breach]:
    all_starts = begun(lines)
    if allowed(row) == 1 and len(all_starts) > 1:
        yield Breach("doubled", f"{named(row)} may start once, and started {len(all_starts)} times")
    ended = {error["attempt"]: error.get("ended_at") for error in row.errors}
    for first, second in pairwise(all_starts):
        if first.attempt == second.attempt:
            yield Breach("doubled", f"{named(row)}: attempt {first.attempt} started twice")
        elif first.attempt in ended:
            at = ended[first.attempt]
            if at and second.at < instant(at).timestamp() - CLOCK:
                yield Breach(
                    "doubled",
                    f"{named(row)}: attempt {second.attempt} started before {first.attempt} was"
                    " given up",
                )
        elif not stops.explain(first, second):
            yield Breach(
                "doubled",
                f"{named(row)}: attempt {second.attempt} started, and nothing says what became"
                f" of attempt {first.attempt}",
            )
    if all_starts and all_starts[-1].attempt > row.attempt:
        yield Breach("fence", f"{named(row)}: attempt {all_starts[-1].attempt} started unrecorded")


def early(
    row: Row, schedule: Schedule | None, asked: Asked | None, lines: list[Line]
) -> Iterator[Breach]:
    """No attempt starts before its time: by Postgres's clock, and by the job's own evidence."""
    offset = row.run_at - row.due_at if row.attempt == 1 else timedelta(0)
    if schedule and not timedelta(0) <= offset <= timedelta(seconds=schedule.spread):
        # A waiting run that was sent back (its task was unknown) would differ, too: none is here.
        yield Breach("early", f"{named(row)} is spread by {offset}")
    if row.started_at and row.started_at < row.run_at:
        yield Breach("early", f"{named(row)} was claimed at {row.started_at:%H:%M:%S.%f}")
    earliest = max((row.due_at + offset).timestamp(), asked.not_before if asked else 0.0)
    for line in begun(lines):
        if line.attempt == row.attempt:  # a retry has a time of its own
            earliest = max(earliest, row.run_at.timestamp())
        if line.at < earliest - CLOCK:
            at = datetime.fromtimestamp(line.at, UTC)
            yield Breach("early", f"{named(row)} started at {at:%H:%M:%S.%f}")
