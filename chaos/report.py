"""The report at the end: the faults, the ends of the runs, how late they were."""

import platform
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from os import cpu_count, getloadavg
from typing import Any

from chaos.clock import Clock
from chaos.laws import Breach
from chaos.story import Row, Story

LOST = re.compile(r"worker (\w+)@.* was lost: its lease ran out")
OF_POSTGRES = ("restart_postgres", "crash_postgres", "terminate_backends", "step_clock")


def report(story: Story, breaches: list[Breach]) -> str:
    return "\n".join(_lines(story, breaches))


def _lines(story: Story, breaches: list[Breach]) -> Iterator[str]:
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    load = ", ".join(f"{value:.1f}" for value in getloadavg())
    yield f"seed {story.seed}, {story.seconds:g} s, {now}; {cpu_count()} cores, load {load},"
    yield f"{platform.platform()}, Python {platform.python_version()}"
    yield ""
    done = Counter(fault.kind for fault in story.faults if fault.what)
    idle = len(story.faults) - sum(done.values())
    yield f"faults: {sum(done.values())} (and {idle} with nothing to do it to)"
    yield from (f"  {kind:20} {count:6}" for kind, count in sorted(done.items()))
    starts = [line for line in story.lines if line.what == "start"]
    asked = f"{len(story.schedules)} schedules and {len(story.asked)} calls"
    yield f"runs: {len(story.rows)}, of {asked}"
    ends = Counter((_kind(row), row.state) for row in story.rows)
    yield from (f"  {kind:10} {state:10} {n:6}" for (kind, state), n in sorted(ends.items()))
    coalesced = sum(row.coalesced for row in story.rows)
    repeats = len(starts) - len({line.run for line in starts})
    errors = sum(len(row.errors) for row in story.rows)
    lost = [error for row in story.rows for error in row.errors if LOST.search(error["error"])]
    clock = Clock(story.steps)
    alone = sum(not _explained(error, story, clock) for error in lost)
    yield f"starts: {len(starts)}, of which {repeats} are second ones or later"
    yield f"failed attempts: {errors}, of which {len(lost)} by a lost lease; coalesced: {coalesced}"
    yield f"leases lost though nothing had happened to their worker or Postgres: {alone}"
    yield f"ended by themselves, and were started again: {len(story.ended_by_themselves)}"
    yield from _by_hand(story)
    yield _lateness(story, clock)
    yield f"all final {story.settled_in:.1f} s after the last fault"
    yield ""
    yield f"breaches: {len(breaches)}"
    yield from (f"  {breach}" for breach in breaches[:50])


def _explained(error: dict[str, Any], story: Story, clock: Clock) -> bool:
    """Whether a worker that lost a lease had met a fault, or had ended, in the minute before."""
    worker = LOST.findall(error["error"])[0]
    at = clock.earliest(datetime.fromisoformat(error["ended_at"]))
    ends = [end.split(" at ") for end in story.ended_by_themselves]
    met = [
        *(fault for fault in story.faults if fault.what.startswith(worker)),
        *(fault for fault in story.faults if fault.kind in OF_POSTGRES and fault.what),
    ]
    return any(fault.began < at < fault.ended + 60 for fault in met) or any(
        name == worker and float(when) - 1 < at < float(when) + 60 for name, when in ends
    )


def _by_hand(story: Story) -> Iterator[str]:
    granted = [cancel for cancel in story.cancels if cancel.granted]
    waited = sum(cancel.waited for cancel in granted)
    yield f"cancels: {len(granted)}, of which {waited} waited; replays: {len(story.replays)}"
    cancelled = sum(fill.cancelled for fill in story.fills)
    yield f"backfills: {len(story.fills)}, of which {cancelled} were cancelled"
    keys = [asked for asked in story.asked if asked.unique_key]
    found = sum(asked.ended == "found" for asked in keys)
    yield f"calls with a unique key: {len(keys)}, of which {found} found a run"
    days_off = sum(row.reason.startswith("calendar ") for row in story.rows)
    deadlines = [row for row in story.rows if row.deadline]
    late = sum(row.late_by is not None for row in deadlines)
    yield f"deadlines: {len(deadlines)}, of which {late} were missed; on days off: {days_off}"


def _lateness(story: Story, clock: Clock) -> str:
    """Compare first starts with the instants from which runs might start; held ones left out."""
    waiting = {
        schedule.id
        for schedule in story.schedules
        if schedule.overlap != "allow" or schedule.catch_up == "all"
    }
    first = dict[str, float]()
    for line in story.lines:
        first.setdefault(line.run, line.at)
    late = sorted(
        clock.highest(first[row.id], within=0) - row.run_at.timestamp()
        for row in story.rows
        if row.attempt == 1 and row.id in first and row.schedule_id not in waiting
    )
    if not late:
        return "lateness: nothing started"
    p50, p99 = late[len(late) // 2], late[int(len(late) * 0.99)]
    return (
        f"lateness of {len(late)} first attempts: p50 {p50 * 1000:.0f} ms, p99 {p99:.1f} s,"
        f" max {late[-1]:.1f} s"
    )


def _kind(row: Row) -> str:
    return row.origin if row.origin in ("backfill", "replay") else row.token.partition("-")[0]
