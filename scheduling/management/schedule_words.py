"""The words and table rows that the command `schedule` prints."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from scheduling import shapes
from scheduling.history.backfilling import Extent
from scheduling.management import output
from scheduling.models import Policy
from scheduling.schedules import NextOccurrence
from scheduling.schedules.destinations import where_it_goes
from scheduling.schedules.editing import LOOK_AHEAD, Edit
from scheduling.schedules.planning import rule_version
from scheduling.schedules.policies import POLICIES
from scheduling.schedules.standing import Standing, is_paused
from scheduling.schedules.upgrade_check import Moved

# A pause until an instant lasts over what is due then.
TICK = timedelta(microseconds=1)
EDGES = 3  # occurrences shown from either end of a backfill
CLOCK_CHANGES = {
    "shifted": "the clocks jump over {missing}: this is the first instant after",
    "repeated": "second pass: the clocks were turned back",
    "skipped": "nothing runs for {missing}, which the clocks jump over",
}


def rows(standing: Standing, now: datetime) -> Iterator[tuple[str, ...] | str]:
    """Yield a schedule's row and, where it will not run, a line below that says why."""
    zone = f" {standing.timezone}" if standing.timezone else ""
    yield (
        standing.schedule.name,
        standing.schedule.task,
        "once" if standing.schedule.clocked else f"{standing.rule}{zone}",
        _state(standing, now) or output.clock(standing.next_due_at, now),
        output.clock(standing.last_due_at, now),
    )
    if (standing.problem or standing.policy.pause_reason) and (
        warning := will_not_run(standing, now)
    ):
        yield f"  {warning}"


def _state(standing: Standing, now: datetime) -> str:
    """Return in a word why a schedule will not run, or "" if it will."""
    if standing.problem:
        return "broken"
    if not standing.schedule.enabled:
        return "done" if standing.schedule.one_off and standing.last_due_at else "disabled"
    if is_paused(standing.policy, now):
        return "paused"
    return "" if standing.next_due_at else "never again"


def will_not_run(standing: Standing, now: datetime) -> str:
    """Return why the occurrences of a schedule will not run, or "" if they will."""
    policy, state = standing.policy, _state(standing, now)
    if state == "broken":
        return f"broken: {standing.problem}"
    if state == "paused":
        until = policy.paused_until
        end = f"until {output.full_clock(until, now)}" if until else "until it is resumed"
        reason = f": {policy.pause_reason}" if policy.pause_reason else ""
        return f"paused by {policy.paused_by or 'somebody'} {end}{reason}"
    return f"{state}: none of these will run" if state in ("done", "disabled") else ""


def next_due(standing: Standing, now: datetime) -> str:
    return _state(standing, now) or output.full_clock(standing.next_due_at, now)


def occurrence_row(occurrence: NextOccurrence, policy: Policy, now: datetime) -> tuple[str, ...]:
    local = occurrence.local
    notes = CLOCK_CHANGES.get(occurrence.dst, "").format(missing=occurrence.missing_words)
    if occurrence.moved_from:
        notes = "; ".join(filter(None, (f"moved from {occurrence.moved_from:%a %Y-%m-%d}", notes)))
    if occurrence.day_off:
        notes = f"skipped: {occurrence.day_off}"
    starts = occurrence.run_at.astimezone(local.tzinfo)
    shape = "%H:%M:%S" if starts.date() == local.date() else "%Y-%m-%d %H:%M:%S"
    return (
        f"{local:%a %Y-%m-%d %H:%M:%S} {local.tzname()}",
        output.distance(occurrence.due_at, now),
        "when due" if occurrence.run_at == occurrence.due_at else f"{starts:{shape}}",
        "paused" if is_paused(policy, max(occurrence.due_at, now) - TICK) else notes,
    )


def extent_lines(name: str, extent: Extent, now: datetime) -> Iterator[str]:
    """Yield how many occurrences a backfill runs and which: the first and the last few."""
    instants = extent.instants
    yield output.printable(f"{name!r} has {len(instants):,} occurrences to run in that range")
    if extent.done:
        yield f"left out: {extent.done:,} with a run that succeeded or is unfinished (see --again)"
    if extent.pending:
        yield f"left to beat: {extent.pending:,} that are due and not fired yet"
    if extent.counted_from:
        yield f"none before {_when(extent.counted_from, now)}: an interval counts from there"
    few = EDGES if len(instants) > 2 * EDGES + 1 else len(instants)
    yield from (f"  {output.full_clock(instant, now)}" for instant in instants[:few])
    if few < len(instants):
        yield f"  ... {len(instants) - 2 * few:,} more ..."
        yield from (f"  {output.full_clock(instant, now)}" for instant in instants[-few:])


def detail_lines(standing: Standing, now: datetime) -> Iterator[str]:
    """Yield all that is known of a schedule: what, when, how it is treated, where it stands."""
    schedule, policy = standing.schedule, standing.policy
    zone = f" {standing.timezone}" if standing.timezone else ""
    call = (schedule.args or "[]", schedule.kwargs or "{}")
    priority = "" if schedule.priority is None else str(schedule.priority)
    facts = (
        ("task", schedule.task),
        ("arguments", " ".join(text for text in call if text not in ("[]", "{}"))),
        ("rule", f"{standing.rule}{zone}"),
        ("not before", _when(schedule.start_time, now)),
        ("not after", _when(schedule.expires, now)),
        ("next", next_due(standing, now)),
        ("last", _when(standing.last_due_at, now)),
        ("why not", will_not_run(standing, now)),
        ("queue", schedule.queue or ""),
        ("exchange", schedule.exchange or ""),
        ("routing key", schedule.routing_key or ""),
        ("runs go to", where_it_goes(schedule)),
        ("priority", priority),
        ("description", schedule.description),
    )
    yield f"Schedule {schedule.name!r}, managed by {policy.get_managed_by_display()}"
    for label, value in facts:
        if value:
            yield f"  {label:<21}{value}"
    for name in POLICIES:
        yield f"  {name:<21}{value_words(getattr(policy, name))}"


def edit_lines(edit: Edit, now: datetime) -> Iterator[str]:
    """Yield what an edit changes, and what that does to the occurrences to come."""
    if edit.rule:
        yield f"rule: {edit.rule[0]} -> {edit.rule[1]}"
    for name, (old, new) in {**edit.columns, **edit.policy}.items():
        yield f"{name}: {value_words(old)} -> {value_words(new)}"
    found = edit.occurrences
    if found is None:
        return
    if found.moved is None:
        yield f"over the next {LOOK_AHEAD.days} days every occurrence stays where it is"
        return
    until = f"the next {LOOK_AHEAD.days} days" if found.complete else _when(found.until, now)
    words = "over" if found.complete else "up to"
    yield (
        f"{words} {until}: adds {found.added:,}, removes {found.removed:,}, keeps {found.kept:,}"
    )
    old, new = (_when(instant, now) or "none" for instant in found.moved)
    yield f"first that moves: {old} -> {new}"


def moved_row(moved: Moved, now: datetime) -> tuple[str, ...]:
    """Return the row of a schedule whose next instant an upgrade has moved."""
    why = f"broken: {moved.problem}" if moved.problem else f"planned by {moved.version or 'nobody'}"
    return moved.name, output.clock(moved.planned, now), output.clock(moved.now, now), why


def audited(seen: int, moved: int, *, fixed: bool) -> str:
    """Return what an audit did, in a line."""
    if not seen:
        return f"Every plan was made by this version ({rule_version()})."
    words = f"{moved:,} of {seen:,} plans that were looked at moved."
    if fixed:
        return f"{words} Beat plans all of them anew."
    return f"{words} With --fix beat plans all of them anew."


def value_words(value: Any) -> str:
    """Return a column's value for people; nothing is `none`."""
    if value is None or value == "":
        return "none"
    if isinstance(value, timedelta):
        return output.length(value)
    if isinstance(value, datetime):
        return shapes.instant(value) or ""
    return str(value)


def _when(instant: datetime | None, now: datetime) -> str:
    return output.full_clock(instant, now) if instant else ""
