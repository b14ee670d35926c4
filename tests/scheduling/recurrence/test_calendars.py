"""A calendar leaves out occurrences, or moves them to the working day before or after."""

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import holidays
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.recurrence import (
    CronRule,
    DaysOff,
    ExcludedDay,
    NeverFires,
    RecurrenceError,
    Rule,
    UnknownCountry,
    bounded,
    check,
    check_country,
    count_between,
    countries,
    country_names,
    cron,
    day_off,
    days_off,
    every,
    latest_between,
    occurrences_between,
    on_working_days,
    once,
    preview,
    solar,
    working,
)
from scheduling.recurrence.dialect import numbers
from tests.scheduling.recurrence.test_laws import (
    DAY,
    MINUTE,
    calendars,
    dense_expressions,
    first_instant,
    law,
    places_in_time,
)

BERLIN = "Europe/Berlin"
WEEKEND = days_off("weekend", weekdays=[5, 6])
GERMAN = days_off("DE holidays", weekdays=[5, 6], country="DE")


def at(text: str, zone: str = BERLIN) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


def shown(rule: Rule, after: str, n: int, zone: str = BERLIN) -> list[str]:
    """The next occurrences on the clocks of a zone: "Fri 2026-12-18 09:00"."""
    rows = preview(rule, at(after, zone), n)
    return [f"{row.due_at.astimezone(ZoneInfo(zone)):%a %Y-%m-%d %H:%M}" for row in rows]


def on(rule: Rule, excluded_day: ExcludedDay, calendar: DaysOff = GERMAN) -> Rule:
    return on_working_days(rule, calendar, excluded_day, BERLIN)


class TestMoving:
    def test_sundays_go_to_the_working_day_after(self) -> None:
        rule = on(cron("0 9 * * 0", BERLIN), "next")
        assert shown(rule, "2026-11-21", 2) == ["Mon 2026-11-23 09:00", "Mon 2026-11-30 09:00"]

    def test_sundays_go_to_the_working_day_before(self) -> None:
        rule = on(cron("0 9 * * 0", BERLIN), "previous")
        assert shown(rule, "2026-11-21", 2) == ["Fri 2026-11-27 09:00", "Fri 2026-12-04 09:00"]

    @pytest.mark.parametrize(
        ("excluded_day", "expected"),
        [
            ("next", ["Mon 2026-12-28 09:00", "Mon 2027-12-27 09:00"]),
            ("previous", ["Thu 2026-12-24 09:00", "Fri 2027-12-24 09:00"]),
        ],
    )
    def test_a_holiday_beside_a_weekend_is_one_stretch_of_days_off(
        self, excluded_day: ExcludedDay, expected: list[str]
    ) -> None:
        rule = on(cron("0 9 25 12 *", BERLIN), excluded_day)
        assert shown(rule, "2026-01-01", 2) == expected

    def test_it_crosses_months_and_years(self) -> None:
        rule = on(cron("0 9 1 1 *", BERLIN), "previous")
        assert shown(rule, "2026-06-01", 2) == ["Thu 2026-12-31 09:00", "Fri 2027-12-31 09:00"]

    @pytest.mark.parametrize("excluded_day", ["previous", "next"])
    def test_a_daily_rule_only_loses_its_days_off(self, excluded_day: ExcludedDay) -> None:
        rule = on(cron("0 9 * * *", BERLIN), excluded_day)
        assert shown(rule, "2026-11-20", 3) == [
            "Fri 2026-11-20 09:00", "Mon 2026-11-23 09:00", "Tue 2026-11-24 09:00",
        ]  # fmt: skip

    @pytest.mark.parametrize("excluded_day", ["previous", "next"])
    def test_a_short_interval_loses_its_days_off_and_gains_nothing(
        self, excluded_day: ExcludedDay
    ) -> None:
        plain = every(timedelta(minutes=7), at("2026-11-16"))
        rule = on(plain, excluded_day)
        friday, monday = at("2026-11-20"), at("2026-11-23")
        assert count_between(rule, friday, friday + DAY) == count_between(
            plain, friday, friday + DAY
        )
        assert count_between(rule, at("2026-11-21"), monday - MINUTE) == 0
        assert count_between(rule, monday, monday + DAY) == count_between(
            plain, monday, monday + DAY
        )

    def test_of_two_days_off_the_nearest_is_taken_over(self) -> None:
        rule = on(every(timedelta(hours=36), at("2026-11-19 12:00")), "next")
        # Saturday 00:00 and Sunday 12:00 fall on days off; Tuesday is its own.
        assert shown(rule, "2026-11-20", 2) == ["Mon 2026-11-23 12:00", "Tue 2026-11-24 00:00"]

    def test_a_weekly_interval_moves_and_keeps_its_anchor(self) -> None:
        rule = on(every(timedelta(days=7), at("2026-12-18 09:00")), "previous")
        assert shown(rule, "2026-12-19", 3) == [
            "Thu 2026-12-24 09:00", "Thu 2026-12-31 09:00", "Fri 2027-01-08 09:00",
        ]  # fmt: skip

    def test_a_single_instant_moves(self) -> None:
        rule = on(once(at("2026-12-26 09:00")), "next")
        (row,) = preview(rule, at("2026-12-01"), 5)
        assert row.due_at == at("2026-12-28 09:00")
        assert row.moved_from == date(2026, 12, 26)

    def test_the_sun_sets_each_day(self) -> None:
        plain = solar("sunset", 52.5, 13.4)
        a, b = at("2026-11-20"), at("2026-11-25")
        moved = list(occurrences_between(on(plain, "next"), a, b))
        own = [due for due in occurrences_between(plain, a, b) if not is_off(WEEKEND, due)]
        assert moved == own

    def test_the_days_of_a_cron_rule_are_those_of_its_own_zone(self) -> None:
        rule = on(cron("0 23 * * 5", "America/New_York"), "next", WEEKEND)
        (row,) = preview(rule, at("2026-11-20"), 1)
        assert row.local.strftime("%a %H:%M") == "Fri 23:00"  # Saturday in Berlin

    def test_bounds_hold_for_where_it_is_moved_to(self) -> None:
        sunday = cron("0 9 * * 0", BERLIN)
        until_sunday = bounded(sunday, not_after=at("2026-11-22 12:00"))
        assert shown(on(until_sunday, "next"), "2026-11-20", 2) == []
        from_monday = bounded(sunday, not_before=at("2026-11-23"))
        assert shown(on(from_monday, "next"), "2026-11-20", 1) == ["Mon 2026-11-23 09:00"]

    def test_a_preview_says_where_from(self) -> None:
        rows = preview(on(cron("0 9 * * 0,3", BERLIN), "next"), at("2026-11-21"), 2)
        assert [row.moved_from for row in rows] == [date(2026, 11, 22), None]

    def test_what_never_fires_never_fires_with_a_calendar(self) -> None:
        with pytest.raises(NeverFires, match="31 February"):
            check(on(cron("0 0 31 2 *", BERLIN), "next"), at("2026-11-21"))


class TestClockChanges:
    """On 2026-03-29 Berlin has no 02:30; on 2026-10-25 it has two."""

    def test_moved_into_a_gap_it_runs_right_after_it(self) -> None:
        rule = on(cron("30 2 * * 6", BERLIN), "next", days_off("saturdays", weekdays=[5]))
        (row,) = preview(rule, at("2026-03-28"), 1)
        assert (row.due_at, row.dst) == (at("2026-03-29 03:00"), "shifted")
        assert row.moved_from == date(2026, 3, 28)

    def test_moved_out_of_a_gap_it_runs_at_the_time_it_was_written_for(self) -> None:
        rule = on(cron("30 2 * * 0", BERLIN), "next")
        assert shown(rule, "2026-03-28", 1) == ["Mon 2026-03-30 02:30"]

    def test_a_fixed_time_moved_into_the_repeated_hour_runs_at_its_first_pass(self) -> None:
        rule = on(cron("30 2 * * 6", BERLIN), "next", days_off("saturdays", weekdays=[5]))
        assert [row.due_at for row in preview(rule, at("2026-10-24"), 1)] == [
            datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
        ]

    def test_an_instant_moved_into_a_gap_or_a_repeated_hour(self) -> None:
        saturdays = days_off("saturdays", weekdays=[5])
        gap = on(once(at("2026-03-28 02:30")), "next", saturdays)
        twice = on(once(at("2026-10-24 02:30")), "next", saturdays)
        assert preview(gap, at("2026-03-01"), 1)[0].due_at == at("2026-03-29 03:00")
        assert preview(twice, at("2026-10-01"), 1)[0].due_at == at("2026-10-25 02:30")

    def test_what_the_clocks_move_over_midnight_is_of_the_day_it_was_written_for(self) -> None:
        # In Scoresbysund the clocks go from Saturday 23:00 to Sunday 00:00.
        rule = cron("30 23 * * *", "America/Scoresbysund")
        sunday = datetime(2026, 3, 29, 1, tzinfo=UTC)
        rows = preview(rule, sunday - timedelta(hours=1), 1)
        assert [(row.due_at, row.dst) for row in rows] == [(sunday, "shifted")]
        assert day_off(on(rule, "skip", days_off("x", weekdays=[6])), sunday) == ""
        skipping = on(rule, "skip", days_off("x", weekdays=[5]))
        assert day_off(skipping, sunday) == "calendar 'x': 2026-03-28 Saturday"


class TestSkipping:
    def test_the_occurrences_stay_and_say_why_nothing_runs(self) -> None:
        rule = on(cron("0 9 24-26 12 *", BERLIN), "skip")
        rows = preview(rule, at("2026-12-01"), 3)
        assert [row.day_off for row in rows] == [
            "",
            "calendar 'DE holidays': 2026-12-25 Christmas Day",
            "calendar 'DE holidays': 2026-12-26 Second Day of Christmas",
        ]

    def test_what_works_is_the_rest(self) -> None:
        rule = on(cron("0 9 * * *", BERLIN), "skip")
        a, b = at("2026-12-21"), at("2027-01-04")
        assert count_between(rule, a, b) == 14
        assert count_between(working(rule), a, b) == 8
        assert latest_between(working(rule), a, b) == at("2026-12-31 09:00")

    @pytest.mark.parametrize(
        "rule",
        [
            cron("0 9 * * 0", BERLIN),
            cron("0 9 25 12 *", BERLIN),
            every(timedelta(days=7), at("2026-11-22 09:00")),
            once(at("2026-12-25 09:00")),
            bounded(cron("0 9 * * *", BERLIN), not_after=at("2026-11-22 23:00")),
        ],
        ids=["sundays", "christmas", "weekly", "once", "bounded"],
    )
    def test_a_rule_that_never_falls_on_a_working_day_is_refused(self, rule: Rule) -> None:
        with pytest.raises(NeverFires, match="calendar 'DE holidays'"):
            check(on(rule, "skip"), at("2026-11-21"))
        if not isinstance(rule, type(bounded(rule, not_after=at("2027-01-01")))):
            check(on(rule, "next"), at("2026-11-21"))

    def test_a_rule_without_a_calendar_leaves_nothing_out(self) -> None:
        rule = cron("0 9 * * *", BERLIN)
        assert working(rule) is rule
        assert day_off(rule, at("2026-12-25 09:00")) == ""


class TestDaysOff:
    @pytest.mark.parametrize(
        ("country", "subdivision"),
        [("DE", ""), ("DE", "BY"), ("US", ""), ("US", "CA"), ("GB", "SCT"), ("JP", ""),
         ("SA", ""), ("IN", "MH"), ("BR", ""), ("CN", "")],
    )  # fmt: skip
    def test_holidays_are_those_of_the_library(self, country: str, subdivision: str) -> None:
        calendar = days_off("x", country=country, subdivision=subdivision)
        oracle = holidays.country_holidays(country, subdiv=subdivision or None)
        day = date(2024, 1, 1)
        while day.year <= 2030:
            assert calendar.is_off(day) == (day in oracle), day
            assert bool(calendar.why(day)) == calendar.is_off(day)
            day += DAY

    def test_a_date_has_its_reason(self) -> None:
        calendar = days_off("x", dates={date(2026, 12, 24): "office closed", date(2027, 1, 4): ""})
        assert calendar.why(date(2026, 12, 24)) == "office closed"
        assert calendar.why(date(2027, 1, 4)) == "excluded date"
        assert calendar.why(date(2027, 1, 5)) == ""

    def test_the_days_of_a_year_are_listed_without_weekdays(self) -> None:
        calendar = days_off("x", weekdays=[6], country="DE", dates={date(2027, 12, 24): "closed"})
        listed = dict(calendar.days_of(2027))
        assert listed[date(2027, 12, 24)] == "closed"
        assert listed[date(2027, 12, 25)] == "Christmas Day"
        assert len(listed) == 10

    def test_years_that_the_library_does_not_know_have_no_holidays(self) -> None:
        assert not days_off("x", country="DE").is_off(date(2199, 12, 25))

    def test_a_week_without_a_working_day_is_refused(self) -> None:
        with pytest.raises(RecurrenceError, match="excludes all seven weekdays"):
            days_off("never", weekdays=range(7))

    def test_weekdays_are_from_0_to_6(self) -> None:
        with pytest.raises(RecurrenceError, match=r"\[7\] are not from 0"):
            days_off("x", weekdays=[7])

    def test_ten_years_without_a_working_day_are_said(self) -> None:
        closed = {date(2026, 1, 1) + number * DAY: "" for number in range(4000)}
        rule = on(cron("0 9 * * *", BERLIN), "next", days_off("closed", dates=closed))
        with pytest.raises(NeverFires, match="no working day in the ten years"):
            check(on(every(DAY, at("2026-01-01")), "next", days_off("c", dates=closed)),
                  at("2026-01-02"))  # fmt: skip
        with pytest.raises(NeverFires):
            check(rule, at("2026-01-02"))

    @pytest.mark.parametrize(
        ("country", "subdivision", "message"),
        [
            ("DX", "", "'DX': use an ISO 3166 code such as 'DE'; near it: "),
            ("Germany", "", "near it: DE"),
            ("", "", "country ''"),
            ("DE", "Bayern", "DE has no subdivision 'Bayern': use one of BB, BE, BW, BY"),
            ("SM", "X", "SM has no subdivision 'X': leave it out"),
            ("\0", "", "no public holidays"),
        ],
    )
    def test_an_unknown_country_is_refused_with_what_is_near(
        self, country: str, subdivision: str, message: str
    ) -> None:
        with pytest.raises(UnknownCountry) as refused:
            check_country(country, subdivision)
        assert message in str(refused.value)

    def test_every_country_that_is_offered_can_be_asked(self) -> None:
        assert countries().keys() == country_names().keys()
        for country in countries():
            calendar = days_off("x", country=country)
            for year in (1950, 2026, 2060, 2199):
                assert len(list(calendar.days_of(year))) < 200, country

    def test_names_and_reasons_are_no_reason_for_a_new_plan(self) -> None:
        one = days_off("one", dates={date(2026, 12, 24): "closed"})
        renamed = days_off("two", dates={date(2026, 12, 24): "office party"})
        other = days_off("one", dates={date(2026, 12, 23): "closed"})
        assert one != renamed
        assert one.fingerprint == renamed.fingerprint != other.fingerprint

    def test_an_unknown_way_is_refused(self) -> None:
        with pytest.raises(RecurrenceError, match="use skip, previous or next"):
            on(cron("0 9 * * *", BERLIN), "later")  # type: ignore[arg-type]


class TestLaws:
    """Against a slow reading of the same sentences, day by day."""

    @law(200)
    @given(dense_expressions, places_in_time(), st.data(), st.sampled_from([-1, 0, 1]))
    def test_a_cron_rule_has_what_its_days_say(
        self, expression: str, place: tuple[str, datetime], data: st.DataObject, step: int
    ) -> None:
        zone, instant = place
        calendar = data.draw(calendars(instant))
        plain = cron(expression, zone)
        rule = working(on(plain, WAYS[step], calendar))
        a, b = instant - 2 * DAY, instant + 2 * DAY
        local = instant.astimezone(ZoneInfo(zone)).date()
        expected = {
            due
            for number in range(-4, 5)
            if not calendar.is_off(day := local + number * DAY)
            and source_of(plain, calendar, day, step)
            for due in due_on(plain, day)
            if a < due <= b
        }
        assert list(occurrences_between(rule, a, b)) == sorted(expected)

    @law(60)
    @given(places_in_time(), st.data(), st.sampled_from([-1, 1]))
    def test_instants_stay_move_or_are_made_up_for(
        self, place: tuple[str, datetime], data: st.DataObject, step: int
    ) -> None:
        zone, instant = place
        calendar = data.draw(calendars(instant))
        length = timedelta(minutes=data.draw(st.integers(90, 15_000)))
        plain = every(length, instant)
        rule = on_working_days(plain, calendar, WAYS[step], zone)
        a, b = instant + 10 * DAY, instant + 30 * DAY
        found = [local_day(due, zone) for due in occurrences_between(rule, a - 10 * DAY, b)]
        assert not [day for day in found if calendar.is_off(day)]
        own = list(occurrences_between(plain, a, b))
        stay = [due for due in own if not calendar.is_off(local_day(due, zone))]
        assert set(stay) <= set(occurrences_between(rule, a, b))
        for due in own:
            target = calendar.working_day(local_day(due, zone), 1 if step > 0 else -1)
            if instant.date() + DAY < target < b.date() - DAY:
                assert target in found, due


WAYS: dict[int, ExcludedDay] = {-1: "previous", 0: "skip", 1: "next"}


def is_off(calendar: DaysOff, due: datetime) -> bool:
    return calendar.is_off(local_day(due, BERLIN))


def local_day(due: datetime, zone: str) -> date:
    return due.astimezone(ZoneInfo(zone)).date()


def source_of(rule: CronRule, calendar: DaysOff, day: date, step: int) -> date | None:
    """The day whose times a working day has: itself, or a day off that it stands in for."""
    read = numbers(rule.expression)
    while not (
        day.month in read.months and day.day in read.days and day.isoweekday() % 7 in read.weekdays
    ):
        day -= step * DAY
        if not step or not calendar.is_off(day):
            return None
    return day


def due_on(rule: CronRule, day: date) -> set[datetime]:
    """The instants of a day at which it shows, or should have shown, a time of the rule."""
    read, zone = numbers(rule.expression), ZoneInfo(rule.timezone)
    times = [time(hour, minute) for hour in read.hours for minute in read.minutes]
    if rule.fixed:
        return {first_instant(datetime.combine(day, at), zone) for at in times}
    walls = [datetime.combine(day, at, tzinfo=zone) for at in times]
    passes = [(wall, wall.replace(fold=fold).astimezone(UTC)) for wall in walls for fold in (0, 1)]
    shown = [
        (wall, due)
        for wall, due in passes
        if due.astimezone(zone).replace(fold=0, tzinfo=zone) == wall
    ]
    jumped = {wall for wall in walls if rule.fixed_hours} - {wall for wall, _ in shown}
    ends = {first_instant(wall.replace(tzinfo=None), zone) for wall in jumped}
    return {due for _, due in shown} | ends
