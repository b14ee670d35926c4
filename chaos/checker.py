"""Checks a history against the promises, in the manner of Jepsen's test of Chronos.

Pure: a story goes in, breaches come out, each with the law it breaks and whom it concerns. It takes
the jobs' own diary for the executions, the oracle for the expected ones, and asks the ledger for
the reason if the two differ.
"""

from collections import defaultdict

from chaos.clock import Clock
from chaos.evidence import Line
from chaos.laws import Breach, calls, requests
from chaos.laws.alone import alone
from chaos.laws.ends import Requests, end
from chaos.laws.starts import Stops, early, starts
from chaos.laws.windows import windows
from chaos.story import Story


def check(story: Story) -> list[Breach]:
    """Return every breach in a story."""
    evidence = defaultdict[str, list[Line]](list)
    for line in story.lines:
        evidence[line.run].append(line)
    rows = {row.id: row for row in story.rows}
    clock = Clock(story.steps)
    breaches = [
        *windows(story, clock),
        *calls.calls(story),
        *calls.found(story, clock),
        *calls.follow_ups(story, evidence, clock),
        *requests.cancels(story, evidence),
        *requests.replays(story),
        *requests.backfills(story, evidence, clock),
        *alone(story, evidence, clock),
        *(Breach("phantom", f"run {run} has no row") for run in evidence.keys() - rows.keys()),
        *(Breach("beat ended", at) for at in story.ended_by_themselves if at.startswith("beat")),
    ]
    wanted, stops = Requests.of(story), Stops(story)
    for row in story.rows:
        lines = evidence[row.id]
        breaches += end(row, wanted, lines, clock)
        breaches += starts(row, lines, stops, clock)
        breaches += early(row, wanted.of_schedule(row), wanted.of_call(row), lines, clock)
    return breaches
