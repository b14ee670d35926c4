"""Turns rows of django-celery-beat, and calendars, into rules of `recurrence`."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar, cast

from django.conf import settings
from django.core.exceptions import ObjectDoesNotExist
from django_celery_beat.models import PeriodicTask

from scheduling import recurrence
from scheduling.postgres.infinity import saturated
from scheduling.recurrence import DaysOff, ExcludedDay, RecurrenceError, Rule
from scheduling.schedules.calendars import days_off_by_id, days_off_of

Row = TypeVar("Row", bound=tuple[Any, ...])

# It separates the rule and its calendar in a serialised rule.
CALENDAR = "|calendar "


class RuleFields(NamedTuple):
    """The columns of a PeriodicTask and of its rule that say when it fires, as SQL returns them."""

    minute: str | None = None
    hour: str | None = None
    day_of_month: str | None = None
    month_of_year: str | None = None
    day_of_week: str | None = None
    timezone: str | None = None
    every: int | None = None
    period: str | None = None
    clocked_time: datetime | None = None
    event: str | None = None
    latitude: object = None
    longitude: object = None
    start_time: datetime | None = None
    expires: datetime | None = None
    days_off: DaysOff | None = None
    excluded_day: str | None = None

    @property
    def is_interval(self) -> bool:
        return self.every is not None

    @property
    def is_slowed(self) -> bool:
        """Whether its interval is shorter than the shortest that is kept to."""
        try:
            return self.is_interval and is_too_short(_interval(self.every or 0, self.period or ""))
        except RecurrenceError:
            return False

    def serialised(self) -> str:
        """Return the rule as text, without its end; `as_planned` reads it back.

        It is kept in Plan.rule.
        """
        rule = "|".join("" if value is None else str(value) for value in self[:-3])
        if self.days_off is None:
            return rule
        return f"{rule}{CALENDAR}{self.days_off.fingerprint} {self.excluded_day}"


def same_rule(one: str, other: str) -> bool:
    """Return whether two serialised rules are the same, apart from their calendars.

    If so, an interval keeps its anchor.
    """
    return one.split(CALENDAR)[0] == other.split(CALENDAR)[0]


def calendar_of(serialised: str) -> str:
    """Return the calendar of a serialised rule, or ""."""
    return serialised.partition(CALENDAR)[2]


def as_planned(serialised: str, fields: RuleFields) -> RuleFields | None:
    """Return the fields of a serialised rule; None if the text cannot be read.

    The text has no end of the rule, and no days off of its calendar: these come from `fields`.
    """
    treated = CALENDAR in serialised
    texts = [text or None for text in serialised.split(CALENDAR)[0].split("|")[:13]]
    if len(texts) < 13:
        return None
    try:
        read = RuleFields(*texts)  # type: ignore[arg-type]
        return fields._replace(
            **read._asdict()
            | {
                "every": None if texts[6] is None else int(texts[6]),
                "clocked_time": _instant(texts[8]),
                "latitude": None if texts[10] is None else Decimal(texts[10]),
                "longitude": None if texts[11] is None else Decimal(texts[11]),
                "start_time": _instant(texts[12]),
                "expires": fields.expires,
                "days_off": fields.days_off if treated else None,
                "excluded_day": fields.excluded_day if treated else None,
            }
        )
    except (ValueError, ArithmeticError):
        return None


def _instant(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


# The same, to be selected beside a schedule `t` and its policy `y`; in RuleFields' order, with the
# calendar's id in place of its days off.
RULE_COLUMNS = f"""
    c.minute, c.hour, c.day_of_month, c.month_of_year, c.day_of_week, c.timezone,
    i.every, i.period, {saturated("k.clocked_time")}, s.event, s.latitude, s.longitude,
    {saturated("t.start_time")}, {saturated("t.expires")},
    y.calendar_id, CASE WHEN y.calendar_id IS NOT NULL THEN y.excluded_day END
"""
RULE_JOINS = """
    LEFT JOIN django_celery_beat_crontabschedule c ON c.id = t.crontab_id
    LEFT JOIN django_celery_beat_intervalschedule i ON i.id = t.interval_id
    LEFT JOIN django_celery_beat_clockedschedule k ON k.id = t.clocked_id
    LEFT JOIN django_celery_beat_solarschedule s ON s.id = t.solar_id
"""


def with_fields(kind: type[Row], rows: Sequence[tuple[Any, ...]]) -> list[Row]:
    """Return rows that SQL selected as `kind`, whose own columns come before RULE_COLUMNS.

    Calendars that the rows name are read from their own tables.
    """
    width: int = kind._fields.index("fields")  # type: ignore[attr-defined]
    make: Callable[..., Row] = kind
    followed = {row[-2] for row in rows if row[-2] is not None}
    if not followed:
        return [make(*row[:width], RuleFields._make(row[width:])) for row in rows]
    calendars = days_off_by_id(followed)  # without deleted ones
    return [
        make(*row[:width], RuleFields._make((*row[width:-2], calendars.get(row[-2]), row[-1])))
        for row in rows
    ]


def fields_of(schedule: PeriodicTask) -> RuleFields:
    """Return the rule's fields of a schedule that the ORM read."""
    crontab, interval = _row(schedule, "crontab"), _row(schedule, "interval")
    clocked, solar = _row(schedule, "clocked"), _row(schedule, "solar")
    policy = getattr(schedule, "policy", None)
    calendar = _row(policy, "calendar") if policy else None
    return RuleFields(
        minute=crontab and crontab.minute,
        hour=crontab and crontab.hour,
        day_of_month=crontab and crontab.day_of_month,
        month_of_year=crontab and crontab.month_of_year,
        day_of_week=crontab and crontab.day_of_week,
        timezone=crontab and str(crontab.timezone or ""),
        every=interval and interval.every,
        period=interval and interval.period,
        clocked_time=clocked and clocked.clocked_time,
        event=solar and solar.event,
        latitude=solar and solar.latitude,
        longitude=solar and solar.longitude,
        start_time=schedule.start_time,
        expires=schedule.expires,
        days_off=calendar and days_off_of(calendar),
        excluded_day=str(policy.excluded_day) if policy and policy.calendar_id else None,
    )


def _row(owner: Any, name: str) -> Any:
    """Return the row that a foreign key names; None if it was deleted without triggers."""
    try:
        return getattr(owner, name)
    except ObjectDoesNotExist:
        return None


def rule_of(schedule: PeriodicTask, anchor: datetime | None = None) -> Rule:
    """Return the rule of a schedule.

    Args:
        schedule: any PeriodicTask.
        anchor: where its interval counts from; its plan's by default, or else its last change.

    Raises:
        RecurrenceError: it has no rule, or an unreadable one.
    """
    plan = getattr(schedule, "plan", None)
    anchor = anchor or (plan and (plan.anchor_at or plan.plan_from)) or schedule.date_changed
    return build_rule(fields_of(schedule), anchor)


@lru_cache(maxsize=16384)
def build_rule(fields: RuleFields, anchor: datetime | None) -> Rule:
    """Return the rule that `fields` describe; an interval counts from `anchor`.

    An interval with a start time counts from there, and fires at it too.

    Raises:
        RecurrenceError: no rule, or an unreadable one.
    """
    rule = _unbounded(fields, anchor)
    if fields.days_off is None and fields.excluded_day is not None:
        raise RecurrenceError("it follows a calendar that does not exist: give it another one.")
    if fields.days_off is not None:
        what = cast(ExcludedDay, fields.excluded_day)
        rule = recurrence.on_working_days(rule, fields.days_off, what, settings.TIME_ZONE)
    return recurrence.bounded(rule, not_before=fields.start_time, not_after=fields.expires)


def _unbounded(fields: RuleFields, anchor: datetime | None) -> Rule:
    if fields.every is not None:
        step = _interval(fields.every, fields.period or "")
        start = fields.start_time or anchor
        if start is None:
            raise RecurrenceError("an interval needs an anchor to count from.")
        at_start = fields.start_time is not None
        return recurrence.every(step, start, includes_anchor=at_start, shortest=recurrence.SHORTEST)
    if fields.minute is not None:
        parts = (
            fields.minute, fields.hour, fields.day_of_month, fields.month_of_year,
            fields.day_of_week,
        )  # fmt: skip
        expression = " ".join("".join((part or "").split()) for part in parts)
        return recurrence.cron(expression, fields.timezone or "UTC")
    if fields.event is not None:
        return recurrence.solar(fields.event, fields.latitude, fields.longitude)  # type: ignore[arg-type]
    if fields.clocked_time is not None:
        return recurrence.once(fields.clocked_time)
    raise RecurrenceError(
        "it has no rule: give it a crontab, an interval, a time or a solar event."
    )


def is_too_short(step: timedelta) -> bool:
    """Return whether an interval is too short: it is refused on entry, and slowed in the ledger."""
    return timedelta(0) < step < recurrence.SHORTEST


def check_length(fields: RuleFields) -> None:
    """Refuse an interval that is too short.

    Raises:
        RecurrenceError: it is.
    """
    if fields.is_slowed:
        raise RecurrenceError(
            f"an interval of {fields.every} {fields.period} is shorter than a second: make it a"
            " second or longer."
        )


def _interval(every: int, period: str) -> timedelta:
    try:
        step = timedelta(**{period: every})
    except (TypeError, OverflowError):
        raise RecurrenceError(f"the interval of {every} {period!r} cannot be counted.") from None
    if step <= timedelta(0):
        raise RecurrenceError(f"the interval of {every} {period} must be above zero.")
    return step
