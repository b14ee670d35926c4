"""Every call has its run, and every end sets off its follow-ups."""

from collections import Counter, defaultdict
from collections.abc import Iterator

from chaos.clock import Clock
from chaos.evidence import Line
from chaos.laws import CLOCK, Breach, named
from chaos.story import Asked, Row, Story

CALLED = ("adhoc", "follow_up")
# The possible follow-ups of a call, by its `then`.
FOLLOWERS = {
    "": (), "link": ("link", "error"), "chord": ("body",), "chain": ("second", "third")
}  # fmt: skip


def calls(story: Story) -> Iterator[Breach]:
    rows = Counter(row.token for row in story.rows if row.origin in CALLED)
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
        yield Breach("unexplained row", f"no user asked for {token}")


def found(story: Story, clock: Clock) -> Iterator[Breach]:
    """A call that found a run with its unique key found an unfinished one, with that very key."""
    rows = {row.id: row for row in story.rows}
    for asked in story.asked:
        if asked.ended == "found":
            row = rows.get(asked.found or "")
            if row is None or row.unique_key != asked.unique_key:
                yield Breach("key", f"{asked.token} found {asked.found}, which has not its key")
            elif row.finished_at and clock.latest(row.finished_at) < asked.began - CLOCK:
                yield Breach("key", f"{asked.token} found {named(row)}, which had ended before")


def follow_ups(story: Story, evidence: dict[str, list[Line]], clock: Clock) -> Iterator[Breach]:
    """A follow-up exists once, if and only if its run ended that way; and starts after it."""
    by_token = defaultdict[str, list[Row]](list)
    for row in story.rows:
        if row.origin in CALLED:
            by_token[row.token].append(row)
    for asked in (asked for asked in story.asked if asked.then):
        for name, first, wanted in _expected(asked, by_token):
            found = by_token[f"{asked.token}/{name}"]
            if len(found) != wanted:
                states = ", ".join(f"{named(row)} is {row.state}" for row in first)
                yield Breach("follow-up", f"{name} has {len(found)} runs: {states}")
            ended = max((_end(row, evidence[row.id], clock) for row in first), default=0.0)
            for row in found:
                if any(line.at < ended - CLOCK for line in evidence[row.id]):
                    yield Breach(
                        "early", f"{named(row)} began before the run that it follows had ended"
                    )


def _expected(
    asked: Asked, by_token: dict[str, list[Row]]
) -> Iterator[tuple[str, list[Row], bool]]:
    """Yield each follower of a call, the rows that it follows, and whether it should be there."""
    first = by_token[asked.token] + by_token[f"{asked.token}/other"]
    if asked.then == "chain":
        yield "second", first, _good(first)
        second = by_token[f"{asked.token}/second"]
        yield "third", second, _good(second)
        return
    expected = {"link": _good(first), "error": bool(first) and not _good(first)}
    for name in FOLLOWERS[asked.then]:
        yield name, first, expected.get(name, _good(first))


def _good(rows: list[Row]) -> bool:
    return bool(rows) and all(row.state == "succeeded" for row in rows)


def _end(row: Row, lines: list[Line], clock: Clock) -> float:
    written = max((line.at for line in lines), default=0.0)
    return clock.earliest(row.finished_at, after=written) if row.finished_at else 0.0
