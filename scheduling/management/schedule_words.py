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

# An occurrence that is due at the very end of a pause is still paused.
TICK = timedelta(microseconds=1)
EDGES = 3  # occurrences shown from either end of a backfill
CLOCK_CHANGES = {
    "shifted": "the clocks skip {missing}: this is the first instant after",
    "repeated": "second pass: the clocks were turned back",
    "skipped": "the clocks skip {missing}: no run for it",
}


def rows(standing: Standing, now: datetime) -> Iterator[tuple[str, ...] | str]:
    """Yield a schedule's row, and below it a line with the reason if it will not run."""
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
    """Return the reason why a schedule will not run, in a word; "" if it will."""
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
        return f"paused by {policy.paused_by or 'an unknown user'} {end}{reason}"
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
    """Yield how many occurrences a backfill runs, and the first and the last few of them."""
    instants = extent.instants
    yield output.printable(f"{name!r} has {len(instants):,} occurrences to run in this range")
    if extent.done:
        yield f"left out: {extent.done:,} whose run has succeeded or is unfinished (see --again)"
    if extent.pending:
        yield f"left to beat: {extent.pending:,} that are due and not yet fired"
    if extent.counted_from:
        yield f"none before {_when(extent.counted_from, now)}: its interval counts from then"
    few = EDGES if len(instants) > 2 * EDGES + 1 else len(instants)
    yield from (f"  {output.full_clock(instant, now)}" for instant in instants[:few])
    if few < len(instants):
        yield f"  ... {len(instants) - 2 * few:,} more ..."
        yield from (f"  {output.full_clock(instant, now)}" for instant in instants[-few:])


def detail_lines(standing: Standing, now: datetime) -> Iterator[str]:
    """Yield everything about a schedule: its call, its rule, its plan and its policy."""
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
        ("will not run", will_not_run(standing, now)),
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
        yield f"  {name:<21}{_policy_words(policy, name)}"


def edit_lines(edit: Edit, now: datetime) -> Iterator[str]:
    """Yield the changes of an edit, and their effect on the next occurrences."""
    if edit.rule:
        yield f"rule: {edit.rule[0]} -> {edit.rule[1]}"
    for name, (old, new) in {**edit.columns, **edit.policy}.items():
        yield f"{name}: {value_words(old)} -> {value_words(new)}"
    found = edit.occurrences
    if found is None:
        return
    if found.moved is None:
        yield f"over the next {LOOK_AHEAD.days} days no occurrence moves"
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
    why = (
        f"broken: {moved.problem}"
        if moved.problem
        else f"planned by {moved.version or 'an unknown version'}"
    )
    return moved.name, output.clock(moved.planned, now), output.clock(moved.now, now), why


def audited(seen: int, moved: int, *, fixed: bool) -> str:
    """Return the result of an upgrade check, in a line."""
    if not seen:
        return f"Every plan was made by this version ({rule_version()})."
    words = f"{moved:,} of {seen:,} checked plans have moved."
    if fixed:
        return f"{words} Beat plans all checked ones again."
    return f"{words} With --fix, beat plans all checked ones again."


def _policy_words(policy: Policy, name: str) -> str:
    """Return the value of a policy and, if it is one of a closed list, its meaning."""
    value, meaning = getattr(policy, name), getattr(policy, f"get_{name}_display", None)
    return f"{value} ({meaning()})" if meaning else value_words(value)


def value_words(value: Any) -> str:
    """Return a column's value for people; an empty one is `none`."""
    if value is None or value == "":
        return "none"
    if isinstance(value, timedelta):
        return output.length(value)
    if isinstance(value, datetime):
        return shapes.instant(value) or ""
    return str(value)


def _when(instant: datetime | None, now: datetime) -> str:
    return output.full_clock(instant, now) if instant else ""
