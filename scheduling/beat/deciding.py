"""Decides on a due occurrence: which runs it becomes, as the policies of its schedule say.

Pure: a due plan and the numbers of its unfinished runs go in, rows to write come out. `due_plans`
reads the plans, and `firing` writes the rows.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import chain, islice
from typing import NamedTuple, TypedDict, cast
from uuid import UUID

from scheduling import recurrence
from scheduling.errors import EnqueueError
from scheduling.ids import uuid7
from scheduling.models import CatchUp, Overlap, Priority, State
from scheduling.postgres.sql import clean
from scheduling.registry import decode_call
from scheduling.runs.message_options import options_with
from scheduling.schedules.destinations import sent_to
from scheduling.schedules.planning import MOMENT, spread_offset
from scheduling.schedules.rules import RuleFields, as_planned, build_rule
from scheduling.task_options import CallOptions

GRACE = timedelta(minutes=1)  # within which `none` still runs, unless the policy has a window
COUNT_MAX = 2**31 - 1  # the largest value of the column
CATCH_UP_STEP = 200  # runs that `all` makes of missed instants, per plan and tick
NO_QUEUE = "celery"  # in the row of a run that is skipped because it has no queue
CATCH_UP_MAX = 1000  # unfinished runs beyond which `all` skips the rest


class Due(NamedTuple):
    """A plan whose instant has come, with the columns of its schedule; `due_plans` reads them."""

    now: datetime
    schedule_id: int
    next_due_at: datetime
    needs_plan: bool
    last_due_at: datetime | None
    anchor_at: datetime | None
    one_off: bool
    task: str
    args: str
    kwargs: str
    headers: str
    queue: str | None
    exchange: str | None
    routing_key: str | None
    priority: int | None
    catch_up: str
    catch_up_window: timedelta | None
    overlap: str
    spread: timedelta
    deadline_after: timedelta | None
    expire_seconds: int | None
    # If the plan was edited: the rule that made it due, and the instant until which it counted.
    rule: str
    replaced_at: datetime
    fields: RuleFields
    # Where its runs go, or the problem; None if the router has not been asked yet.
    sent: CallOptions | str | None = None

    @property
    def until(self) -> datetime:
        """The instant up to which its occurrences are decided on."""
        return min(self.now, self.replaced_at) if self.needs_plan else self.now


class Unfinished(NamedTuple):
    """The numbers of runs of a schedule that are not final yet."""

    running: int = 0
    held: int = 0
    all: int = 0


class NewRun(NamedTuple):
    """A run to write, in the order of WRITE's columns."""

    id: UUID
    schedule_id: int
    task: str
    due_at: datetime
    run_at: datetime
    state: str
    reason: str
    coalesced: int
    queue: str
    priority: int
    options: str
    deadline: datetime | None
    expires_at: datetime | None


# Runs to write, the next instant, and the last instant that was decided on.
Decided = tuple[list[NewRun], datetime | None, datetime]


class Fate(TypedDict):
    """The state and reason of a run, as the overlap policy decides."""

    state: str
    reason: str


class Moved(NamedTuple):
    """The new state of a plan, in the order of WRITE's columns."""

    schedule_id: int
    next_due_at: datetime | None
    last_due_at: datetime | None
    fired: int
    error: str = ""
    done: bool = False  # a one-off that has fired


def decide(
    plan: Due, unfinished: Unfinished, step: int = CATCH_UP_STEP
) -> tuple[list[NewRun], Moved]:
    """Return the runs that a due plan becomes, up to `step`, and the new state of the plan.

    If an edit replaced the instant before it came due, no run is made, and the schedule is planned
    anew. An instant that was due before the edit fires as it was planned. A plan that cannot be
    evaluated is recorded as skipped, and its schedule goes to quarantine: it must not stop others.
    """
    if plan.needs_plan and plan.next_due_at > plan.replaced_at:  # the first edit's, of several
        return [], Moved(plan.schedule_id, None, plan.last_due_at, 0)
    try:
        args, kwargs = decode_call(plan.args, plan.kwargs)
        sent = plan.sent or sent_to(plan, args, kwargs)
    except EnqueueError as problem:
        return _quarantined(plan, str(problem))
    if isinstance(sent, str):
        return _quarantined(plan, sent)
    plan = plan._replace(sent=sent)
    if plan.needs_plan:
        plan = _before_the_edit(plan)
    try:
        runs, next_due, last_due = _catch_up(plan, unfinished, step)
        if plan.needs_plan and next_due is not None and next_due > plan.until:
            next_due = None  # that is the new rule's to say
        done = plan.one_off and not _comes_again(plan)
    except Exception as exception:
        return _quarantined(plan, f"{type(exception).__name__}: {exception}")
    runs = _without_overlap(plan, unfinished, runs)
    return runs, Moved(plan.schedule_id, next_due, last_due, len(runs), done=done)


def _quarantined(plan: Due, problem: str) -> tuple[list[NewRun], Moved]:
    due, reason = plan.next_due_at, clean(problem)
    run = NewRun(
        uuid7(), plan.schedule_id, plan.task, due, due, State.SKIPPED, reason, 0, NO_QUEUE,
        Priority.MEDIUM, "{}", None, None,
    )  # fmt: skip
    return [run], Moved(plan.schedule_id, None, due, 1, reason, done=plan.one_off)


def _before_the_edit(plan: Due) -> Due:
    """Return an edited plan with the rule that made it due; without a rule if that is unknown.

    It is also unknown whether the schedule was a one-off before. If an edit gave a one-off another
    rule, only the planned instant fires, and the instant of the new rule is still to come.
    """
    fields = as_planned(plan.rule, plan.fields)
    try:
        build_rule(fields or plan.fields, plan.anchor_at)
    except recurrence.RecurrenceError:
        fields = None
    if fields is None:
        return plan._replace(rule="")
    if plan.one_off and fields != plan.fields:
        return plan._replace(fields=fields, rule="", one_off=False)
    return plan._replace(fields=fields)


def _catch_up(plan: Due, unfinished: Unfinished, step: int) -> Decided:
    """Return the runs for the due instants, the next instant, and the last one decided on."""
    due, until = plan.next_due_at, plan.until
    late = plan.catch_up == CatchUp.NONE and due < _in_time_since(plan)
    unknown = plan.needs_plan and not plan.rule
    if unknown or (plan.one_off and not _comes_again(plan)):
        # The next instant does not follow from this rule.
        state, why = (State.SKIPPED, _late(plan)) if late else (State.SCHEDULED, "")
        return [_run(plan, due, state, why)], None, due
    rule = build_rule(plan.fields, plan.anchor_at)
    if late:  # this row counts all late occurrences; those still in time come next
        return _one_row(plan, rule, min(_in_time_since(plan), until), State.SKIPPED, _late(plan))
    following = recurrence.next_after(rule, due)
    if plan.catch_up == CatchUp.ALL and ((following and following <= until) or unfinished.held):
        return _one_for_each(plan, rule, unfinished, step)
    if following is None or following > until:
        return [_run(plan, due)], following, due
    if plan.catch_up == CatchUp.NONE:
        runs = _run_for_each(plan, rule, step)
        return runs, recurrence.next_after(rule, runs[-1].due_at), runs[-1].due_at
    if _day_off(plan, due):
        return _skip_days_off(plan, rule)
    latest = stands_for = recurrence.latest_between(rule, due, until) or due
    working = rule
    if plan.fields.days_off:  # one run stands for all missed occurrences on working days
        working = recurrence.working(rule)
        stands_for = recurrence.latest_between(working, due, latest) or due
    missed = recurrence.count_between(working, due, latest)
    run = _run(plan, due, coalesced=missed, stands_for=stands_for)
    return [run], recurrence.next_after(rule, latest), latest


def _day_off(plan: Due, due: datetime) -> str:
    """Return why the plan's calendar leaves an occurrence out, or "" if it does not."""
    if plan.fields.days_off is None:
        return ""
    try:
        return recurrence.day_off(build_rule(plan.fields, plan.anchor_at), due)
    except recurrence.RecurrenceError:
        if plan.needs_plan:  # a later edit broke the rule: this occurrence was due before it
            return ""
        raise


def _comes_again(plan: Due) -> bool:
    """Return whether a one-off runs at a later occurrence, because this one is on a day off."""
    return plan.fields.clocked_time is None and bool(_day_off(plan, plan.next_due_at))


def _skip_days_off(plan: Due, rule: recurrence.Rule) -> Decided:
    # This row counts the occurrences missed on the same days off; working days come next.
    due, upto, working = plan.next_due_at, plan.until, recurrence.working(rule)
    if recurrence.fires_between(working, due, upto) and (
        first := recurrence.next_after(working, due)
    ):
        upto = first - MOMENT
    return _one_row(plan, rule, upto)


def _one_row(
    plan: Due, rule: recurrence.Rule, upto: datetime, state: State = State.SCHEDULED, why: str = ""
) -> Decided:
    """Return one row for the due instant, which counts the further instants up to `upto`."""
    due = plan.next_due_at
    missed = recurrence.count_between(rule, due, upto)
    last = recurrence.latest_between(rule, due, upto) or due
    run = _run(plan, due, state, why, coalesced=missed)
    return [run], recurrence.next_after(rule, last), last


def _in_time_since(plan: Due) -> datetime:
    return plan.now - (GRACE if plan.catch_up_window is None else plan.catch_up_window)


def _late(plan: Due) -> str:
    return f"missed: noticed {plan.now - plan.next_due_at} after it was due"


def _one_for_each(plan: Due, rule: recurrence.Rule, unfinished: Unfinished, step: int) -> Decided:
    due, window = plan.next_due_at, plan.catch_up_window
    oldest = plan.now - window if window is not None else due
    if due < oldest:
        reason, last = "missed: before the catch-up window", min(oldest, plan.until)
    elif unfinished.all >= CATCH_UP_MAX:
        reason, last = f"missed: {unfinished.all} runs of this schedule wait already", plan.until
    else:
        runs = _run_for_each(plan, rule, step)
        last = runs[-1].due_at
        return _one_at_a_time(runs, unfinished), recurrence.next_after(rule, last), last
    return _one_row(plan, rule, last, State.SKIPPED, reason)


def _run_for_each(plan: Due, rule: recurrence.Rule, step: int) -> list[NewRun]:
    """Return a run for the due instant and for each that has passed since, up to `step`."""
    missed = recurrence.occurrences_between(rule, plan.next_due_at, plan.until)
    instants = islice(chain([plan.next_due_at], missed), step)
    return [_run(plan, instant) for instant in instants]


def hold(run: NewRun) -> NewRun:
    """Return the run as held: it waits for earlier runs of its schedule, unless it is skipped."""
    return run._replace(state=State.HELD) if run.state == State.SCHEDULED else run


def _one_at_a_time(runs: list[NewRun], unfinished: Unfinished) -> list[NewRun]:
    if unfinished.all:
        return [hold(run) for run in runs]
    starting = next((n for n, run in enumerate(runs) if run.state == State.SCHEDULED), 0) + 1
    return runs[:starting] + [hold(run) for run in runs[starting:]]


def _without_overlap(plan: Due, unfinished: Unfinished, runs: list[NewRun]) -> list[NewRun]:
    """Return the runs as the overlap policy lets them start; new runs overlap each other, too."""
    starting = [run for run in runs if run.state == State.SCHEDULED]
    if plan.overlap == Overlap.ALLOW or len(starting) + unfinished.all < 2:
        return runs
    fates = iter(_fates(plan.overlap, unfinished, starting))
    return [run._replace(**next(fates)) if run.state == State.SCHEDULED else run for run in runs]


def _fates(overlap: str, unfinished: Unfinished, starting: list[NewRun]) -> Iterator[Fate]:
    """Yield the fate of each run that would start, the oldest first."""
    if overlap == Overlap.REPLACE:
        reason = f"overlap: replaced by the run due {starting[-1].due_at.isoformat()}"
        yield from [Fate(state=State.SKIPPED, reason=reason)] * (len(starting) - 1)
        yield Fate(state=State.HELD if unfinished.running else State.SCHEDULED, reason="")
        return
    begun, held = unfinished.all > 0, unfinished.held > 0
    for _ in starting:
        if not begun:
            begun = True
            yield Fate(state=State.SCHEDULED, reason="")
        elif overlap == Overlap.QUEUE and not held:
            held = True
            yield Fate(state=State.HELD, reason="")
        elif overlap == Overlap.QUEUE:
            reason = "overlap: one run waits already for an unfinished one"
            yield Fate(state=State.SKIPPED, reason=reason)
        else:
            yield Fate(state=State.SKIPPED, reason="overlap: an earlier run is unfinished")


def _run(
    plan: Due,
    due: datetime,
    state: State = State.SCHEDULED,
    reason: str = "",
    coalesced: int = 0,
    stands_for: datetime | None = None,
) -> NewRun:
    """Return the row of the occurrence `due`. It is skipped on a day off.

    Its expiry counts from the last occurrence that it stands for. The schedule's own expiry takes
    precedence over that of its task.
    """
    if state == State.SCHEDULED and (why := _day_off(plan, due)):
        state, reason = State.SKIPPED, why
    offset = spread_offset(plan.schedule_id, plan.spread) if plan.spread else timedelta(0)
    deadline = None if plan.deadline_after is None else due + plan.deadline_after
    expires = plan.fields.expires and _later(plan.fields.expires, offset)
    sent = cast("CallOptions", plan.sent)  # `decide` has set it
    own = sent.expires if plan.expire_seconds is None else timedelta(seconds=plan.expire_seconds)
    if isinstance(own, timedelta):
        own = _later((stands_for or due) + offset, own)
    expires = min(filter(None, (expires, own)), default=None)
    return NewRun(
        uuid7(), plan.schedule_id, plan.task, due, due + offset, state, reason,
        min(coalesced, COUNT_MAX), sent.queue, sent.priority, options_with(plan.headers), deadline,
        expires,
    )  # fmt: skip


def _later(end: datetime, offset: timedelta) -> datetime | None:
    """Return the end moved by an offset; None (without end) if a datetime cannot hold it."""
    try:
        return end + offset
    except OverflowError:
        return None
