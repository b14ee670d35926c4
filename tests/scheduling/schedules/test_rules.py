from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from django.db import connection
from django_celery_beat.models import ClockedSchedule, PeriodicTask, SolarSchedule

from scheduling import recurrence
from scheduling.models import Calendar, ExcludedDay
from scheduling.postgres.sql import lean_cursor
from scheduling.recurrence import RecurrenceError
from scheduling.schedules.rules import (
    RULE_COLUMNS,
    RULE_JOINS,
    RuleFields,
    as_planned,
    build_rule,
    fields_of,
    rule_of,
    same_rule,
    with_fields,
)
from tests.scheduling.ledger import NOON, crontab, interval, schedule

WEEKEND = recurrence.days_off("weekend", weekdays=[5, 6])
HOURLY = RuleFields("0", "*", "*", "*", "*", "UTC")


def nexts(fields: RuleFields, anchor: datetime | None = None, n: int = 2) -> list[datetime]:
    return [o.due_at for o in recurrence.preview(build_rule(fields, anchor), NOON, n)]


class TestBuilding:
    def test_a_crontab_is_read_in_its_zone(self) -> None:
        fields = HOURLY._replace(minute="0", hour="9", timezone="America/New_York")
        assert nexts(fields, n=1) == [datetime(2026, 11, 20, 14, tzinfo=UTC)]

    def test_spaces_in_a_crontabs_fields_are_no_trouble(self) -> None:
        assert nexts(HOURLY._replace(minute="0, 30")) == [
            NOON + timedelta(minutes=30), NOON + timedelta(hours=1),
        ]  # fmt: skip

    def test_an_empty_field_is_refused(self) -> None:
        with pytest.raises(RecurrenceError):
            build_rule(HOURLY._replace(hour=""), None)

    def test_an_interval_counts_from_its_anchor(self) -> None:
        fields = RuleFields(every=90, period="minutes")
        assert nexts(fields, NOON - timedelta(minutes=30)) == [
            NOON + timedelta(minutes=60), NOON + timedelta(minutes=150),
        ]  # fmt: skip

    def test_an_interval_with_a_start_counts_from_there_and_fires_at_it(self) -> None:
        fields = RuleFields(every=1, period="days", start_time=NOON + timedelta(hours=1))
        assert nexts(fields, NOON)[0] == NOON + timedelta(hours=1)

    @pytest.mark.parametrize(
        ("every", "period"),
        [(0, "days"), (-1, "days"), (1, "fortnights"), (1, ""), (10**12, "days")],
    )
    def test_an_interval_that_is_none_is_refused(self, every: int, period: str) -> None:
        with pytest.raises(RecurrenceError, match="interval"):
            build_rule(RuleFields(every=every, period=period), NOON)

    def test_an_interval_without_an_anchor_is_refused(self) -> None:
        with pytest.raises(RecurrenceError, match="needs an anchor"):
            build_rule(RuleFields(every=1, period="days"), None)

    def test_no_rule_is_refused(self) -> None:
        with pytest.raises(RecurrenceError, match="it has no rule"):
            build_rule(RuleFields(), None)

    def test_limits_bound_any_rule(self) -> None:
        fields = HOURLY._replace(
            start_time=NOON + timedelta(hours=3), expires=NOON + timedelta(hours=4)
        )
        assert nexts(fields, n=9) == [NOON + timedelta(hours=3), NOON + timedelta(hours=4)]


def test_every_field_is_in_the_fingerprint() -> None:
    values: dict[str, Any] = {
        "minute": "1", "hour": "2", "day_of_month": "3", "month_of_year": "4", "day_of_week": "5",
        "timezone": "UTC", "every": 6, "period": "days", "clocked_time": NOON, "event": "sunset",
        "latitude": Decimal(1), "longitude": Decimal(2), "start_time": NOON, "expires": NOON,
        "days_off": WEEKEND,
    }  # fmt: skip
    prints = {RuleFields(**{name: value}).serialised() for name, value in values.items()}
    assert len(prints) == len(values) == len(RuleFields._fields) - 1
    ways = {RuleFields(days_off=WEEKEND, excluded_day=way).serialised() for way in ExcludedDay}
    assert len(ways) == 3


def test_a_rule_is_the_same_whatever_its_calendar() -> None:
    one, other = HOURLY.serialised(), HOURLY._replace(days_off=WEEKEND).serialised()
    assert same_rule(one, other)
    assert not same_rule(one, HOURLY._replace(hour="1", days_off=WEEKEND).serialised())


def test_days_off_of_a_rule_without_a_zone_are_those_of_the_site(settings: Any) -> None:
    sunday = datetime(2026, 11, 22, tzinfo=ZoneInfo(settings.TIME_ZONE))
    fields = RuleFields(every=1, period="hours", days_off=WEEKEND, excluded_day="next")
    due = recurrence.next_after(build_rule(fields, NOON), sunday)
    assert due == sunday + timedelta(days=1)


class Read(NamedTuple):
    fields: RuleFields


@pytest.mark.django_db
@pytest.mark.parametrize("kind", ["crontab", "interval", "clocked", "solar"])
def test_the_orm_and_sql_read_the_same_fields(kind: str) -> None:
    rule: Any = {
        "crontab": lambda: crontab("5", "6", timezone="Europe/Berlin"),
        "interval": lambda: interval(5),
        "clocked": lambda: ClockedSchedule.objects.create(clocked_time=NOON),
        "solar": lambda: SolarSchedule.objects.create(event="sunset", latitude=52, longitude=13),
    }[kind]()
    ends = NOON + timedelta(days=900)
    calendar = Calendar.objects.create(name="DE", weekdays=[6], country="DE")
    calendar.dates.create(date=NOON.date(), reason="closed")
    policy = {"calendar": calendar, "excluded_day": "next"}
    row = schedule(**{kind: rule}, one_off=True, start_time=NOON, expires=ends, policy=policy)
    with lean_cursor() as cursor:
        sql = f"SELECT {RULE_COLUMNS} FROM django_celery_beat_periodictask t {RULE_JOINS}"  # noqa: S608
        sql += " LEFT JOIN scheduling_policy y ON y.schedule_id = t.id"
        cursor.execute(f"{sql} WHERE t.id = %s", [row.pk])
        by_sql = with_fields(Read, cursor.fetchall())[0].fields
    by_orm = fields_of(PeriodicTask.objects.get(pk=row.pk))
    assert by_sql.serialised() == by_orm.serialised()
    assert build_rule(by_sql, NOON) == build_rule(by_orm, NOON)
    assert connection.vendor == "postgresql"


@pytest.mark.django_db
def test_a_schedules_rule_counts_from_its_plans_anchor() -> None:
    row = schedule(interval=interval(7, "days"))
    row.plan.anchor_at = NOON
    assert recurrence.next_after(rule_of(row), NOON) == NOON + timedelta(days=7)
    assert recurrence.next_after(rule_of(row, NOON - timedelta(days=1)), NOON) == (
        NOON + timedelta(days=6)
    )


@pytest.mark.parametrize(
    "fields",
    [
        RuleFields("0", "6", "*", "*", "1-5", "Europe/Berlin"),
        RuleFields("0,30", "*/2", "1", "jan", "mon,fri", "UTC", start_time=NOON),
        RuleFields(every=90, period="seconds"),
        RuleFields(clocked_time=NOON.replace(microsecond=7)),
        RuleFields(event="sunset", latitude=Decimal("52.000000"), longitude=Decimal("-13.5")),
        RuleFields(),
    ],
)
def test_a_fingerprint_says_what_the_rule_was(fields: RuleFields) -> None:
    end = NOON + timedelta(days=1)
    edited = RuleFields("1", "2", "3", "4", "5", "UTC", expires=end)
    assert as_planned(fields.serialised(), edited) == fields._replace(expires=end)


@pytest.mark.parametrize("text", ["", "x", "|" * 11, "||||||x|||||||", "||||||||then||||"])
def test_a_text_that_is_no_fingerprint_says_nothing(text: str) -> None:
    assert as_planned(text, RuleFields()) is None
