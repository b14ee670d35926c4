"""Every run is final, for a reason that its policy or a user's request explains."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from chaos.clock import Clock
from chaos.evidence import Line
from chaos.laws import CLOCK, DEFAULT_ATTEMPTS, Breach, allowed, begun, instant, named
from chaos.story import Asked, Row, Schedule, Story

FINAL = {"succeeded", "failed", "cancelled", "expired", "skipped"}
# Within which a beat must have escalated late runs to front, even if all beats were down meanwhile.
RAISED_WITHIN = 20.0  # seconds
# Possible reasons for a failed attempt: the job itself, or the loss of its worker.
EXPECTED_ERRORS = ("Deliberate:", "WorkerLostError:", "Terminated:")
# How the error of a run ends that its worker gave up, and that must not start twice.
ONCE = "not tried again, since one attempt is allowed"


@dataclass(frozen=True)
class Requests:
    """The possible requests about a run: by its schedule's policy, its call, or a user."""

    schedules: dict[int, Schedule]
    asked: dict[str, Asked]
    cancelled: frozenset[str]  # runs, and backfills

    @classmethod
    def of(cls, story: Story) -> "Requests":
        fills = {fill.id for fill in story.fills if fill.cancelled}
        return cls(
            {schedule.id: schedule for schedule in story.schedules},
            {asked.token: asked for asked in story.asked},
            frozenset({cancel.run for cancel in story.cancels} | fills),
        )

    def of_schedule(self, row: Row) -> Schedule | None:
        """Return the schedule whose policies hold for a run: not those of backfills and replays."""
        return self.schedules.get(row.schedule_id or 0) if row.origin == "schedule" else None

    def of_call(self, row: Row) -> Asked | None:
        return self.asked.get(row.token) if row.origin == "adhoc" else None

    def may_cancel(self, row: Row) -> bool:
        schedule = self.schedules.get(row.schedule_id or 0)
        replaced = schedule and schedule.overlap == "replace" and row.backfill_id is None
        return bool(replaced) or not self.cancelled.isdisjoint((row.id, row.backfill_id))


def end(row: Row, requests: Requests, lines: list[Line], clock: Clock) -> Iterator[Breach]:
    if row.state not in FINAL:
        yield Breach("not final", f"{named(row)} is {row.state}")
        return
    problem = _unexplained(row, requests)
    if problem:
        yield Breach("unexplained end", f"{named(row)} is {row.state}: {problem}")
    yield from _evidence(row, lines)
    yield from _result(row)
    yield from _errors(row, lines)
    yield from _lateness(row, lines, clock)


def _evidence(row: Row, lines: list[Line]) -> Iterator[Breach]:
    ended = {line.attempt for line in lines if line.what == "end"}
    if row.state == "succeeded" and row.attempt not in ended:
        yield Breach("no evidence", f"{named(row)} succeeded and attempt {row.attempt} never ended")
    if row.state == "skipped" and lines:
        yield Breach("unexplained start", f"{named(row)} is skipped and was started")
    if row.state == "expired" and any(line.attempt >= row.attempt for line in begun(lines)):
        yield Breach("unexplained start", f"{named(row)} is expired and was started")
    if row.expires_at and row.started_at and row.started_at >= row.expires_at:
        yield Breach("unexplained start", f"{named(row)} was started when it had expired")


def _result(row: Row) -> Iterator[Breach]:
    if row.state == "succeeded" and row.result != str(row.attempt):
        yield Breach("fence", f"{named(row)} has the result of attempt {row.result}")
    status = {"succeeded": "SUCCESS", "failed": "FAILURE"}.get(row.state)
    if status and row.result_status != status:
        yield Breach("fence", f"{named(row)} is {row.state} and its result {row.result_status}")


def _errors(row: Row, lines: list[Line]) -> Iterator[Breach]:
    """Each recorded failure is of one attempt, and the job knows of it if it was the job's."""
    failed = {line.attempt for line in lines if line.what == "fail"}
    for error in row.errors:
        given_up = row.max_attempts == 1 and error["error"].endswith(ONCE)
        if not given_up and not error["error"].startswith(EXPECTED_ERRORS):
            yield Breach("unexplained error", f"{named(row)}: {error['error'][:200]}")
        if error["error"].startswith("Deliberate:") and error["attempt"] not in failed:
            yield Breach("no evidence", f"{named(row)}: attempt {error['attempt']} did not fail")
    tried = [error["attempt"] for error in row.errors]
    if tried != sorted(set(tried)) or any(attempt > row.attempt for attempt in tried):
        yield Breach("fence", f"{named(row)} has errors of the attempts {tried}")


def _unexplained(row: Row, requests: Requests) -> str:
    """Return the problem with the reason that a run gives for its end, or ""."""
    schedule = requests.of_schedule(row)
    overlap = schedule.overlap if schedule else ""
    if row.state in ("skipped", "expired", "cancelled") and not row.reason:
        return "it says not why"
    if row.state == "skipped":
        if row.reason.startswith("overlap"):
            return f"but overlap is {overlap}" if overlap in ("", "allow") else ""
        if row.reason.startswith("calendar ") and schedule:
            return ""  # laws.windows knows on which days
        late = schedule and schedule.catch_up in ("all", "none")
        return "" if row.reason.startswith("missed") and late else f"why? {row.reason!r}"
    if row.coalesced and schedule and schedule.catch_up == "all":
        return f"it has coalesced {row.coalesced}, and catch_up is all"
    if row.state == "cancelled":
        return "" if requests.may_cancel(row) else f"no user asked for it: {row.reason!r}"
    if row.state == "expired":
        passed = row.expires_at and row.finished_at and row.finished_at >= row.expires_at
        return "" if passed else "before its time"
    # Celery's own `max_retries` may end it sooner.
    most = allowed(row)
    least = min(most, DEFAULT_ATTEMPTS) if row.task.endswith("retrying") else most
    if row.state == "failed" and row.failures < least:
        return f"after {row.failures} failures of {most}: {row.reason!r}"
    if row.failures > most:
        return f"after {row.failures} failures of {most}"
    return ""


def _lateness(row: Row, lines: list[Line], clock: Clock) -> Iterator[Breach]:
    """By how much the first attempt missed its deadline is written down; and nothing else is."""
    claimed = _first_claim(row)
    if row.deadline is None or claimed is None or not lines:
        if row.deadline is None and row.late_by is not None:
            yield Breach("deadline", f"{named(row)} is late for a deadline that it has not")
        return
    late = (claimed - row.deadline).total_seconds()
    since = max(row.deadline, row.created_at)
    waited = clock.elapsed(since, claimed) if claimed > since else 0.0
    if waited > RAISED_WITHIN and row.attempt == 1 and row.priority not in (None, 0):
        yield Breach("deadline", f"{named(row)} was late by {late:.3f} s, and never at the front")
    if abs(max(late, 0) - (row.late_by or 0)) > CLOCK:
        yield Breach("deadline", f"{named(row)} was late by {late:.3f} s, and says {row.late_by}")


def _first_claim(row: Row) -> datetime | None:
    """Return when the first attempt was claimed, by Postgres's clock; None if nothing says so."""
    if row.attempt == 1:
        return row.started_at
    first: dict[str, Any] = next((error for error in row.errors if error["attempt"] == 1), {})
    return instant(first["started_at"]) if first.get("started_at") else None
