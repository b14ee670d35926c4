"""Writes schedules that are declared in code to the ledger.

`migrate` calls `sync` at its end. A schedule that code made is code's: it follows its entry, and
goes when the entry goes. A user's schedule of the same name becomes code's if it equals the entry,
like the rows that django-celery-beat's own scheduler has written. Any other schedule is
left as it is and listed, until a user asks for it to be taken over.
"""

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import IntegrityError, connection, transaction
from django_celery_beat.models import PeriodicTask

from scheduling import clock, recurrence
from scheduling.errors import ScheduleError
from scheduling.models import ManagedBy, Policy
from scheduling.near_names import did_you_mean
from scheduling.schedules import code_entries, policies
from scheduling.schedules.code_entries import Entry
from scheduling.schedules.rule_rows import Every, column_of, is_length, row_of, rule_of_row
from scheduling.schedules.rules import build_rule, fields_of, rule_of

RULES = ("crontab", "interval", "solar", "clocked")
TRIES = 3
HOW_TO_TAKE_OVER = (
    "A schedule marked ! stays as it is: it belongs to a user, and differs from the code's of the"
    " same name. `manage.py schedule sync --take-over NAME` makes it the code's, --take-over-all"
    " makes all of them; with --dry-run they only list the changes."
)

# Two machines may be deployed at once: the second one sees the rows of the first.
ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(hashtext('scheduling_code_schedules'))"

# The rules and calendars of code's schedules are locked before any of their plans: a transaction
# that edits a rule or a calendar has locked that first, and may wait for plans.
HOLD = """
SELECT scheduling_hold_rules(array_agg(DISTINCT t.crontab_id), array_agg(DISTINCT t.interval_id),
                             array_agg(DISTINCT t.clocked_id), array_agg(DISTINCT t.solar_id)),
    scheduling_hold_calendars(array_agg(DISTINCT y.calendar_id))
  FROM django_celery_beat_periodictask t LEFT JOIN scheduling_policy y ON y.schedule_id = t.id
 WHERE y.managed_by = 'code' OR t.name = ANY(%s)
"""


@dataclass(frozen=True)
class Step:
    """The changes to one schedule that make the ledger equal to the code.

    `columns`, `rule` and `policy` have the present and the wanted values.
    """

    name: str
    entry: Entry | None = None
    found: PeriodicTask | None = None
    columns: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    rule: tuple[str, str] | None = None
    policy: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    adopts: bool = False  # a user's schedule becomes code's
    left: bool = False  # a user's schedule stays, which differs

    @property
    def line(self) -> str:
        """The step for people: `+ name: rule`, `~ name: what: old -> new; ...`, `- name`.

        With `=`, a user's schedule has become code's; with `!`, a user's stays, which differs.
        """
        if self.entry is None:
            return f"- {self.name}"
        if self.found is None:
            return f"+ {self.name}: {(self.rule or ('', ''))[1]}"
        pairs: dict[str, tuple[Any, Any]] = {"rule": self.rule} if self.rule else {}
        pairs.update(self.columns)
        pairs.update({f"policy {name}": pair for name, pair in self.policy.items()})
        words = [f"{what}: {_text(old)} -> {_text(new)}" for what, (old, new) in pairs.items()]
        if self.left:
            return f"! {self.name}: {'; '.join(words)}"
        if self.adopts:
            return f"= {self.name}: {'; '.join(['now belongs to code', *words])}"
        return f"~ {self.name}: {'; '.join(words)}"


@dataclass(frozen=True)
class Synced:
    """The changes, and the schedules of users that were left unchanged: a line for each."""

    lines: list[str]
    left: list[str]

    def __bool__(self) -> bool:
        return bool(self.lines or self.left)


def sync(take_over: Collection[str] = (), *, everything: bool = False) -> Synced:
    """Make the ledger's code-managed schedules equal to the code.

    An entry's `policy` says how it is treated: a policy that it does not name has its default, and
    a pause, which belongs to operators, stays.

    Args:
        take_over: names of users' schedules that become code's, even if they differ.
        everything: take over every schedule with the name of an entry.

    Raises:
        ScheduleError: an entry cannot be read or never fires, or `take_over` names no entry.
            Nothing is changed then.
    """
    entries = _entries(take_over)
    for last in (*[False] * (TRIES - 1), True):
        try:
            with transaction.atomic():
                return _sync(entries, take_over, everything)
        except IntegrityError:  # a user has taken a name at this very moment
            if last:
                raise
    raise AssertionError


def compare(take_over: Collection[str] = (), *, everything: bool = False) -> Synced:
    """Return the changes of a `sync`, without writing or locking a row.

    Raises:
        ScheduleError: as `sync`.
    """
    entries = _entries(take_over)
    return _said(_steps(entries, take_over, everything, clock.now()))


def _entries(take_over: Collection[str]) -> dict[str, Entry]:
    entries = code_entries.entries()
    for name in take_over:
        if name not in entries:
            known = f"there are {', '.join(list(entries)[:20]) or 'none'}."
            hint = did_you_mean(name, entries, known)
            raise ScheduleError(f"code has no schedule {name!r}: {hint}")
    return entries


def _sync(entries: dict[str, Entry], take_over: Collection[str], everything: bool) -> Synced:
    with connection.cursor() as cursor:
        cursor.execute(ONE_AT_A_TIME)
        cursor.execute(HOLD, [list(entries)])
    now = clock.now()
    steps = list(_steps(entries, take_over, everything, now, lock=True))
    for step in steps:
        _apply(step, now)
    return _said(steps)


def _said(steps: Iterable[Step]) -> Synced:
    steps = list(steps)
    return Synced(
        [step.line for step in steps if not step.left],
        [step.line for step in steps if step.left],
    )


# --- The changes ---------------------------------------------------------------------------------


def _steps(
    entries: dict[str, Entry],
    take_over: Collection[str],
    everything: bool,
    now: datetime,
    *,
    lock: bool = False,
) -> Iterable[Step]:
    rows = PeriodicTask.objects.select_related(*RULES).order_by("pk")
    if lock:
        rows = rows.select_for_update(of=("self",))
    found = {row.name: row for row in rows.filter(name__in=list(entries))}
    treated = Policy.objects.select_related("calendar").filter(schedule__in=found.values())
    policy_by_id = {policy.pk: policy for policy in treated}
    for name, entry in entries.items():
        row = found.get(name)
        policy = policy_by_id.get(row.pk) if row else None
        step = _step(entry, row, policy, everything or name in take_over, now)
        if step is not None:
            yield step
    of_code = PeriodicTask.objects.filter(policy__managed_by=ManagedBy.CODE)
    for row in of_code.exclude(name__in=list(entries)).order_by("name"):
        yield Step(row.name, found=row)


def _step(
    entry: Entry, row: PeriodicTask | None, policy: Policy | None, take_over: bool, now: datetime
) -> Step | None:
    asked = code_entries.policy_of(entry)
    if asked["calendar"] is not None:
        _check_with_calendar(entry, asked, now)
    if row is None:
        return Step(entry.name, entry, rule=("", _described(entry, now)))
    of_code = policy is not None and policy.managed_by == ManagedBy.CODE
    columns = {
        column: (getattr(row, column), value)
        for column, value in sorted(entry.columns.items())
        if getattr(row, column) != value
    }
    rule = None if _is_rule(row, entry, now) else (_rule_text(row, now), _described(entry, now))
    treatment = policies.differences(policy or Policy(), asked)
    step = Step(
        entry.name, entry, row, columns, rule, dict(sorted(treatment.items())), adopts=not of_code
    )
    if of_code:
        return step if columns or rule or treatment else None
    if take_over or (not treatment and _says_the_same(row, entry, step)):
        return step
    return Step(step.name, entry, row, columns, rule, step.policy, left=True)


def _says_the_same(row: PeriodicTask, entry: Entry, step: Step) -> bool:
    """Return whether a user's row equals the entry, or an earlier form of it.

    django-celery-beat's own scheduler writes the row of each entry anew whenever it starts. Where
    it keeps less than the entry says, the row is code's all the same.
    """
    if step.rule and not _is_beat_rule(row, entry):
        return False
    return all(
        column in entry.beat_columns and (value or None) == (entry.beat_columns[column] or None)
        for column, (value, _) in step.columns.items()
    )


def _is_beat_rule(row: PeriodicTask, entry: Entry) -> bool:
    rule = row.crontab if "minute" in entry.beat_rule else row.interval
    if not entry.beat_rule or rule is None:
        return False
    return all(str(getattr(rule, name)) == text for name, text in entry.beat_rule.items())


def _is_rule(row: PeriodicTask, entry: Entry, now: datetime) -> bool:
    """Return whether the row's rule means the same as the entry's, also in another rule's row."""
    if isinstance(entry.rule, Every):
        return row.interval is not None and is_length(row.interval, entry.rule.step)
    bare = {"start_time": None, "expires": None, "days_off": None, "excluded_day": None}
    try:
        return build_rule(fields_of(row)._replace(**bare), now) == rule_of_row(entry.rule, now)
    except recurrence.RecurrenceError:
        return False


def _described(entry: Entry, now: datetime) -> str:
    return recurrence.describe(rule_of_row(entry.rule, now))


def _rule_text(row: PeriodicTask, now: datetime) -> str:
    try:
        return recurrence.describe(rule_of(row, anchor=now))
    except recurrence.RecurrenceError:
        return str(row.scheduler or "none") if any(getattr(row, name) for name in RULES) else "none"


def _text(value: Any) -> str:
    return "none" if value is None or value == "" else str(value)


def _check_with_calendar(entry: Entry, policy: Mapping[str, Any], now: datetime) -> None:
    """Refuse a rule that never fires on the days that the calendar leaves."""
    schedule = PeriodicTask(name=entry.name)
    _set(schedule, entry, now)
    schedule.policy = Policy(**policy)
    try:
        recurrence.check(rule_of(schedule, anchor=now), now)
    except recurrence.RecurrenceError as error:
        raise ScheduleError(f"{entry.where}: {error}") from None


# --- Doing it ------------------------------------------------------------------------------------


def _set(schedule: PeriodicTask, entry: Entry, now: datetime) -> None:
    for column, value in entry.columns.items():
        setattr(schedule, column, value)
    for column in RULES:
        setattr(schedule, column, None)
    setattr(schedule, column_of(entry.rule), row_of(entry.rule, now))


def _apply(step: Step, now: datetime) -> None:
    if step.left:
        return
    if step.entry is None:
        if step.found is not None:
            step.found.delete()
        return
    policy = code_entries.policy_of(step.entry)
    if step.found is None:
        schedule = PeriodicTask(name=step.name)
        _set(schedule, step.entry, now)
        _save_rule(schedule)
        # Not save(): its own look for the name would refuse it as a form does.
        PeriodicTask.objects.bulk_create([schedule])
        policies.write(schedule, {**policy, "managed_by": ManagedBy.CODE})
        return
    treatment = {column: policy[column] for column in step.policy}
    if step.adopts:
        treatment["managed_by"] = ManagedBy.CODE
    if treatment:
        policies.write(step.found, treatment)
    changed = {column: value for column, (_, value) in step.columns.items()}
    if step.rule is not None:
        edited = copy.copy(step.found)
        _set(edited, step.entry, now)
        _save_rule(edited)
        changed |= {column: getattr(edited, column) for column in RULES}
    if changed:
        PeriodicTask.objects.filter(pk=step.found.pk).update(**changed)


def _save_rule(schedule: PeriodicTask) -> None:
    """Save the rule's row if it is new, and name it in the schedule's own column."""
    for column in RULES:
        row = getattr(schedule, column)
        if row is not None and row.pk is None:
            row.save()
            setattr(schedule, column, row)
