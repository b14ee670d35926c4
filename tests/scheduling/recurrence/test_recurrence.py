"""Intervals, single instants, solar events, limits, previews, checks, descriptions."""

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import schedules

from scheduling import recurrence
from scheduling.recurrence import (
    InvalidInterval,
    InvalidSolar,
    MissingDependency,
    NaiveInstant,
    NeverFires,
    Occurrence,
    RecurrenceError,
    Rule,
    bounded,
    check,
    count_between,
    cron,
    describe,
    every,
    latest_between,
    next_after,
    occurrences_between,
    once,
    preview,
    solar,
    tzdata_version,
)

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

celery_solar: Any = schedules.solar  # its stubs leave out this function


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def naive(text: str) -> datetime:
    return datetime.fromisoformat(text)


class TestIntervals:
    def test_it_counts_from_the_anchor(self) -> None:
        rule = every(300, utc("2026-03-01T00:01:30"))
        assert next_after(rule, utc("2026-03-01T10:00")) == utc("2026-03-01T10:01:30")

    def test_the_first_occurrence_is_one_step_after_the_anchor(self) -> None:
        rule = every(timedelta(days=7), utc("2026-03-01"))
        assert next_after(rule, utc("2020-01-01")) == utc("2026-03-08")
        assert next_after(rule, utc("2026-03-01")) == utc("2026-03-08")

    def test_the_anchor_can_be_an_occurrence_itself(self) -> None:
        rule = every(timedelta(days=7), utc("2026-03-01"), includes_anchor=True)
        assert next_after(rule, utc("2020-01-01")) == utc("2026-03-01")
        assert next_after(rule, utc("2026-03-01")) == utc("2026-03-08")
        assert count_between(rule, utc("2020-01-01"), utc("2026-03-08")) == 2

    def test_an_occurrence_is_not_after_itself(self) -> None:
        rule = every(60, utc("2026-03-01"))
        assert next_after(rule, utc("2026-03-01T00:05")) == utc("2026-03-01T00:06")

    def test_it_does_not_drift_in_130_years_of_odd_microseconds(self) -> None:
        rule = every(timedelta(microseconds=333_333), utc("1970-01-01"))
        due = next_after(rule, utc("2100-12-31"))
        assert due is not None
        assert (due - utc("1970-01-01")) % timedelta(microseconds=333_333) == timedelta(0)
        assert due - utc("2100-12-31") <= timedelta(microseconds=333_333)

    def test_clock_changes_do_not_touch_it(self) -> None:
        berlin = ZoneInfo("Europe/Berlin")
        rule = every(86_400, datetime(2026, 3, 28, 9, tzinfo=berlin))
        assert next_after(rule, datetime(2026, 3, 29, tzinfo=berlin)) == utc("2026-03-29T08:00")

    def test_what_an_outage_missed_is_counted_by_arithmetic(self) -> None:
        rule = every(timedelta(microseconds=1), utc("1970-01-01"))
        assert count_between(rule, utc("2000-01-01"), utc("2100-01-01")) == 3_155_760_000_000_000
        assert latest_between(rule, utc("2000-01-01"), utc("2100-01-01")) == utc("2100-01-01")
        assert count_between(rule, utc("2100-01-01"), utc("2000-01-01")) == 0

    def test_past_the_last_year_of_python_there_is_nothing(self) -> None:
        rule = every(timedelta(days=3_000_000), utc("2026-01-01"), includes_anchor=True)
        assert next_after(rule, utc("2025-01-01")) == utc("2026-01-01")
        assert next_after(rule, utc("2026-01-01")) is None

    @pytest.mark.parametrize("step", [0, -5, 1e-9, timedelta(0), timedelta(seconds=-1)])
    def test_it_refuses_a_step_that_is_not_above_zero(self, step: float | timedelta) -> None:
        with pytest.raises(InvalidInterval, match="not above zero: use a positive length"):
            every(step, utc("2026-01-01"))

    @pytest.mark.parametrize("step", [float("nan"), float("inf"), 1e300, "5m"])
    def test_it_refuses_what_is_no_length_of_time(self, step: float) -> None:
        with pytest.raises(InvalidInterval, match="is not a length of time: use a timedelta"):
            every(step, utc("2026-01-01"))


class TestSingleInstants:
    def test_it_occurs_once(self) -> None:
        rule = once(datetime(2026, 3, 1, 9, tzinfo=timezone(timedelta(hours=2))))
        assert next_after(rule, utc("2026-03-01T06:59")) == utc("2026-03-01T07:00")
        assert next_after(rule, utc("2026-03-01T07:00")) is None
        assert count_between(rule, utc("2026-01-01"), utc("2027-01-01")) == 1
        assert latest_between(rule, utc("2026-01-01"), utc("2027-01-01")) == utc("2026-03-01T07:00")

    def test_equal_instants_are_equal_rules_whatever_their_zone(self) -> None:
        in_berlin = datetime(2026, 3, 1, 9, tzinfo=ZoneInfo("Europe/Berlin"))
        assert once(in_berlin) == once(utc("2026-03-01T08:00"))
        assert hash(once(in_berlin)) == hash(once(utc("2026-03-01T08:00")))


class TestLimits:
    def test_the_first_occurrence_is_at_or_after_the_start(self) -> None:
        rule = bounded(cron("0 9 * * *", "UTC"), not_before=utc("2026-03-01T09:00"))
        assert next_after(rule, utc("2020-01-01")) == utc("2026-03-01T09:00")
        later = bounded(cron("0 9 * * *", "UTC"), not_before=utc("2026-03-01T09:00:01"))
        assert next_after(later, utc("2020-01-01")) == utc("2026-03-02T09:00")

    def test_a_start_in_the_past_changes_nothing(self) -> None:
        rule = bounded(cron("0 9 * * *", "UTC"), not_before=utc("2020-01-01"))
        assert next_after(rule, utc("2026-03-01T10:00")) == utc("2026-03-02T09:00")

    def test_the_end_is_included(self) -> None:
        rule = bounded(every(60, utc("2026-03-01")), not_after=utc("2026-03-01T00:02"))
        found = list(occurrences_between(rule, utc("2026-01-01"), utc("2027-01-01")))
        assert found == [utc("2026-03-01T00:01"), utc("2026-03-01T00:02")]
        assert count_between(rule, utc("2026-01-01"), utc("2027-01-01")) == 2
        assert latest_between(rule, utc("2026-01-01"), utc("2027-01-01")) == utc("2026-03-01T00:02")

    def test_one_off_is_the_first_occurrence_only(self) -> None:
        rule = bounded(cron("0 9 * * mon", "UTC"), not_before=utc("2026-03-03"), one_off=True)
        assert next_after(rule, utc("2020-01-01")) == utc("2026-03-09T09:00")
        assert next_after(rule, utc("2026-03-09T09:00")) is None
        assert count_between(rule, utc("2020-01-01"), utc("2030-01-01")) == 1

    def test_one_off_needs_a_start(self) -> None:
        with pytest.raises(RecurrenceError, match="one-off has no start: give not_before"):
            bounded(every(60, utc("2026-01-01")), one_off=True)

    def test_no_limits_are_the_rule_itself(self) -> None:
        rule = cron("0 9 * * *", "UTC")
        assert bounded(rule) is rule

    def test_a_start_at_the_beginning_of_time_is_a_start(self) -> None:
        first = datetime(1, 1, 1, tzinfo=UTC)
        for one_off in (False, True):
            rule = bounded(every(3600, first), not_before=first, one_off=one_off)
            assert next_after(rule, first) == first + timedelta(hours=1)
            assert (next_after(rule, utc("2026-01-01")) is None) is one_off

    def test_an_end_before_the_start_leaves_nothing(self) -> None:
        rule = bounded(
            every(60, utc("2026-01-01")), not_before=utc("2026-03-02"), not_after=utc("2026-03-01")
        )
        assert next_after(rule, utc("2026-01-01")) is None
        assert count_between(rule, utc("2026-01-01"), utc("2027-01-01")) == 0
        assert latest_between(rule, utc("2026-01-01"), utc("2027-01-01")) is None


class TestSolar:
    @pytest.mark.parametrize("event", sorted(celery_solar._all_events))
    @pytest.mark.parametrize(
        ("latitude", "longitude"), [(52.52, 13.405), (-33.86, 151.2), (40.7, -74), (0, 180)]
    )
    def test_it_agrees_with_celery(self, event: str, latitude: float, longitude: float) -> None:
        for start in (utc("2026-03-10T12:00"), utc("2026-12-20T01:30")):
            theirs = celery_solar(event, latitude, longitude, nowfun=lambda now=start: now)
            ours = next_after(solar(event, latitude, longitude), start)
            assert ours is not None
            assert abs(ours - (start + theirs.remaining_estimate(start))) < timedelta(seconds=2)

    def test_an_event_is_one_instant_whoever_asks(self) -> None:
        rule = solar("sunrise", 52.52, 13.405)
        due = next_after(rule, utc("2026-03-10T12:00"))
        assert due is not None
        for seconds in (1, 60, 7200, 50_000):
            assert next_after(rule, due - timedelta(seconds=seconds)) == due
        assert due.microsecond == 0
        following = next_after(rule, due)
        assert following is not None
        assert timedelta(hours=23) < following - due < timedelta(hours=25)

    @pytest.mark.parametrize("longitude", [-180, -179.9, -75.5, 0, 13.4, 100, 179.9, 180])
    def test_a_year_has_one_noon_a_day_everywhere(self, longitude: float) -> None:
        rule = solar("solar_noon", 10, longitude)
        a, b = utc("2026-01-01T18:00"), utc("2027-01-01T18:00")
        assert count_between(rule, a, b) == 365
        middle = utc("2026-06-01T03:21")
        split = count_between(rule, a, middle) + count_between(rule, middle, b)
        assert split == 365

    def test_polar_days_without_the_event_are_passed_over(self) -> None:
        sunset = solar("sunset", 69.65, 18.96)  # Tromso: no sunset from mid-May to late July
        due = next_after(sunset, utc("2026-06-01"))
        assert due is not None
        assert utc("2026-07-20") < due < utc("2026-08-01")
        last = latest_between(sunset, utc("2026-01-01"), utc("2026-07-01"))
        assert last is not None
        assert utc("2026-05-10") < last < utc("2026-05-25")

    def test_near_the_polar_summer_no_sunrise_is_lost_or_doubled(self) -> None:
        rule = solar("sunrise", 69.65, 18.96)
        found = list(occurrences_between(rule, utc("2026-03-01"), utc("2026-05-15T12:00")))
        gaps = [later - earlier for earlier, later in pairwise(found)]
        assert all(timedelta(hours=22) < gap < timedelta(hours=24.5) for gap in gaps)

    def test_an_event_that_drifts_across_midnight_is_neither_lost_nor_doubled(self) -> None:
        """Nautical dusk comes back at the turn to 12 July, then at 23:43 on the same day."""
        rule = solar("dusk_nautical", 56, 0)
        found = list(occurrences_between(rule, utc("2026-07-01"), utc("2026-07-14T12:00")))
        assert len(found) == 3
        assert all(DAY - HOUR < later - earlier < DAY for earlier, later in pairwise(found))

    def test_it_refuses_an_event_that_never_happens_there(self) -> None:
        with pytest.raises(NeverFires, match="does not happen at that latitude"):
            check(solar("sunrise", 90, 0), utc("2026-01-01"))

    def test_it_takes_the_decimals_of_a_database(self) -> None:
        assert solar("sunset", Decimal("52.520000"), Decimal("13.4")) == solar(
            "sunset", 52.52, 13.4
        )

    def test_it_names_unknown_events_and_places(self) -> None:
        with pytest.raises(InvalidSolar, match="unknown solar event 'noon': use one of dawn_astro"):
            solar("noon", 0, 0)
        with pytest.raises(InvalidSolar, match=r"latitude 91 is not on Earth: use .* -90 to 90"):
            solar("sunset", 91, 0)
        with pytest.raises(InvalidSolar, match="longitude nan is not on Earth"):
            solar("sunset", 0, float("nan"))

    def test_without_ephem_it_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ephem", None)
        with pytest.raises(MissingDependency, match="pip install ephem"):
            solar("sunset", 0, 0)


def rows(rule: Rule, after: str, n: int) -> list[tuple[str, str, str, datetime | None]]:
    """(due_at, local, dst, missing) with short texts."""
    return [
        (f"{row.due_at:%d %H:%M}", f"{row.local:%H:%M%z}", row.dst, row.missing)
        for row in preview(rule, utc(after), n)
    ]


class TestPreview:
    def test_a_fixed_time_in_a_gap_is_shifted(self) -> None:
        rule = cron("30 2 * * *", "America/New_York")
        assert rows(rule, "2026-03-07T00:00", 3) == [
            ("07 07:30", "02:30-0500", "", None),
            ("08 07:00", "03:00-0400", "shifted", naive("2026-03-08T02:30")),
            ("09 06:30", "02:30-0400", "", None),
        ]

    def test_several_in_one_gap_show_the_first(self) -> None:
        (row,) = preview(cron("15,45 2 * * *", "America/New_York"), utc("2026-03-08"), 1)
        assert (row.dst, row.missing) == ("shifted", naive("2026-03-08T02:15"))

    def test_a_fixed_time_at_the_end_of_a_gap_is_not_shifted(self) -> None:
        (row,) = preview(cron("0 3 * * *", "America/New_York"), utc("2026-03-08"), 1)
        assert (row.due_at, row.dst) == (utc("2026-03-08T07:00"), "")

    def test_the_second_pass_is_repeated(self) -> None:
        rule = cron("*/30 * * * *", "America/New_York")
        assert rows(rule, "2026-11-01T04:45", 5) == [
            ("01 05:00", "01:00-0400", "", None),
            ("01 05:30", "01:30-0400", "", None),
            ("01 06:00", "01:00-0500", "repeated", None),
            ("01 06:30", "01:30-0500", "repeated", None),
            ("01 07:00", "02:00-0500", "", None),
        ]

    def test_a_fixed_time_has_no_second_pass(self) -> None:
        found = preview(cron("30 1 * * *", "America/New_York"), utc("2026-11-01"), 2)
        assert [row.dst for row in found] == ["", ""]

    def test_the_occurrence_after_a_gap_says_what_was_skipped(self) -> None:
        rule = cron("30 * * * *", "America/New_York")
        assert rows(rule, "2026-03-08T06:00", 3) == [
            ("08 06:30", "01:30-0500", "", None),
            ("08 07:30", "03:30-0400", "skipped", naive("2026-03-08T02:30")),
            ("08 08:30", "04:30-0400", "", None),
        ]

    def test_a_range_of_hours_in_the_gap_alone_says_so_on_the_next_day(self) -> None:
        (row,) = preview(cron("*/20 2-2 * * *", "America/New_York"), utc("2026-03-08T05:00"), 1)
        assert row.due_at == utc("2026-03-09T06:00")
        assert (row.dst, row.missing) == ("skipped", naive("2026-03-08T02:00"))

    def test_steps_of_a_fixed_hour_in_the_gap_are_shifted_together(self) -> None:
        found = preview(cron("*/20 2 * * *", "America/New_York"), utc("2026-03-08T05:00"), 2)
        assert [(row.due_at, row.dst) for row in found] == [
            (utc("2026-03-08T07:00"), "shifted"),
            (utc("2026-03-09T06:00"), ""),
        ]
        assert (found[0].missing, found[0].missing_more) == (naive("2026-03-08T02:00"), 2)

    def test_steps_of_a_fixed_hour_have_a_second_pass(self) -> None:
        found = preview(cron("*/30 1 * * *", "America/New_York"), utc("2026-11-01T05:00"), 3)
        assert [row.dst for row in found] == ["", "repeated", "repeated"]

    def test_the_first_of_several_skipped_times_is_shown(self) -> None:
        """Istanbul's last gaps were on the last Sundays of March 2015 and 2016."""
        rule = cron("*/20 3-3 25-31 3 sun", "Europe/Istanbul")
        (row,) = preview(rule, utc("2014-04-01"), 1)
        assert row.due_at == utc("2017-03-26T00:00")
        assert (row.dst, row.missing) == ("skipped", naive("2015-03-29T03:00"))

    def test_the_others_are_counted(self) -> None:
        """Apia left out the whole 30th of December 2011."""
        (_, row) = preview(cron("0 */6 * * *", "Pacific/Apia"), utc("2011-12-30T00:00"), 2)
        assert (row.missing, row.missing_more) == (naive("2011-12-30T00:00"), 3)
        (row,) = preview(cron("0,15,30 2 * * *", "America/New_York"), utc("2026-03-08T06:00"), 1)
        assert (row.dst, row.missing_more) == ("shifted", 2)

    def test_a_rule_that_does_not_meet_the_gap_has_no_mark(self) -> None:
        found = preview(cron("0 */4 * * *", "America/New_York"), utc("2026-03-08"), 6)
        assert [row.dst for row in found] == [""] * 6

    def test_it_ends_with_the_rule(self) -> None:
        rule = once(utc("2026-03-01"))
        assert preview(rule, utc("2026-01-01"), 5) == [
            Occurrence(utc("2026-03-01"), utc("2026-03-01"))
        ]
        assert preview(rule, utc("2026-01-01"), 0) == []

    def test_limits_keep_the_marks(self) -> None:
        rule = bounded(cron("30 2 * * *", "America/New_York"), not_before=utc("2026-03-08"))
        assert [row.dst for row in preview(rule, utc("2026-01-01"), 2)] == ["shifted", ""]


class TestChecks:
    @pytest.mark.parametrize("expression", ["0 0 31 2 *", "0 0 30-31 feb *", "0 0 31 4,6,9,11 mon"])
    def test_it_refuses_days_that_do_not_exist(self, expression: str) -> None:
        with pytest.raises(NeverFires, match=r"31 February never does.*change one of them"):
            check(cron(expression, "Europe/Berlin"), utc("2026-03-01"))

    def test_it_refuses_within_milliseconds(self) -> None:
        check(cron("0 0 1 1 *", "Europe/Berlin"), utc("2026-03-01"))
        started = time.perf_counter()
        with pytest.raises(NeverFires):
            check(cron("1 0 31 2 *", "Europe/Berlin"), utc("2026-03-01"))
        assert time.perf_counter() - started < 0.05

    def test_it_refuses_a_rule_that_does_not_fire_within_ten_years(self) -> None:
        rule = cron("0 0 29 2 mon", "UTC")
        assert next_after(rule, utc("2028-03-01")) == utc("2044-02-29")
        with pytest.raises(
            NeverFires, match=r"'0 0 29 2 mon \(UTC\)' does not fire within ten years"
        ):
            check(rule, utc("2028-03-01"))

    def test_it_takes_a_rule_of_leap_years(self) -> None:
        check(cron("0 0 29 2 *", "UTC"), utc("2096-03-01"))

    def test_it_refuses_limits_that_hold_nothing(self) -> None:
        rule = bounded(cron("0 9 * * *", "UTC"), not_after=utc("2026-01-01"))
        with pytest.raises(
            NeverFires, match=r"until 2026-01-01 00:00:00 UTC.*move its start or its"
        ):
            check(rule, utc("2026-03-01"))

    def test_it_refuses_an_instant_in_the_past(self) -> None:
        with pytest.raises(
            NeverFires, match=r"once at 2026-01-01 .*choose an instant in the future"
        ):
            check(once(utc("2026-01-01")), utc("2026-03-01"))


class TestDescriptions:
    @pytest.mark.parametrize(
        ("rule", "text"),
        [
            (cron("0 9 * * 1-5", "Europe/Berlin"), "0 9 * * 1-5 (Europe/Berlin)"),
            (cron("0 9 * * MON", ZoneInfo("Europe/Berlin")), "0 9 * * mon (Europe/Berlin)"),
            (every(300, utc("2026-01-01")), "every 5 minutes"),
            (every(3600, utc("2026-01-01")), "every hour"),
            (every(90, utc("2026-01-01")), "every 90 seconds"),
            (every(timedelta(days=7), utc("2026-01-01")), "every 7 days"),
            (every(0.25, utc("2026-01-01")), "every 250 milliseconds"),
            (once(utc("2026-03-01T09:00")), "once at 2026-03-01 09:00:00 UTC"),
            (solar("sunset", 52.52, 13.405), "sunset at 52.52, 13.405"),
            (
                bounded(every(60, utc("2026-01-01")), not_before=utc("2026-02-01"), one_off=True),
                "every minute from 2026-02-01 00:00:00 UTC once",
            ),
        ],
    )
    def test_it_describes_every_kind_of_rule(self, rule: Rule, text: str) -> None:
        assert describe(rule) == text


class TestInstants:
    def test_naive_datetimes_are_refused_everywhere(self) -> None:
        bare, aware = naive("2026-03-01T09:00"), utc("2026-03-01")
        rule = cron("0 9 * * *", "UTC")
        for act in (
            lambda: next_after(rule, bare),
            lambda: occurrences_between(rule, aware, bare),
            lambda: count_between(rule, bare, aware),
            lambda: latest_between(rule, aware, bare),
            lambda: preview(rule, bare, 1),
            lambda: check(rule, bare),
            lambda: once(bare),
            lambda: every(60, bare),
            lambda: bounded(rule, not_before=bare),
        ):
            with pytest.raises(NaiveInstant, match="2026-03-01T09:00:00 has no time zone: give an"):
                act()

    def test_any_zone_goes_in_and_utc_comes_out(self) -> None:
        due = next_after(
            cron("0 9 * * *", "Asia/Tokyo"), datetime(2026, 3, 1, tzinfo=ZoneInfo("America/Lima"))
        )
        assert due == utc("2026-03-02T00:00")
        assert due is not None
        assert due.tzinfo is UTC

    def test_occurrences_come_lazily(self) -> None:
        endless = occurrences_between(
            cron("* * * * *", "UTC"), utc("1970-01-01"), utc("2100-01-01")
        )
        assert next(endless) == utc("1970-01-01T00:01")


class TestCost:
    """Generous limits: they catch a walk in place of arithmetic, not a slow machine."""

    def test_ten_thousand_next_instants_take_less_than_half_a_second(self) -> None:
        rules = [cron(f"{n % 60} {n % 24} * * *", "Europe/Berlin") for n in range(10_000)]
        started = time.perf_counter()
        for rule in rules:
            next_after(rule, utc("2026-03-01T12:34:56"))
        assert time.perf_counter() - started < 0.5

    def test_five_years_of_a_minutely_rule_are_counted_in_milliseconds(self) -> None:
        rule = cron("* * * * *", "America/New_York")
        a, b = utc("2021-03-01"), utc("2026-03-01")
        assert count_between(rule, a, b) == 1826 * 1440
        started = time.perf_counter()
        count_between(rule, a, b)
        latest_between(rule, a, b)
        assert time.perf_counter() - started < 0.02


class TestPurity:
    def test_it_needs_no_settings_and_no_database(self) -> None:
        """Celery itself imports a little of django.utils if it is there."""
        code = (
            "import sys; from scheduling.recurrence import cron; cron('0 9 * * *', 'UTC');"
            "print({'django.conf', 'django.db', 'redis', 'psycopg'} & {*sys.modules})"
        )
        root = Path(recurrence.__file__).parents[2]
        ran = subprocess.run(
            [sys.executable, "-c", code], cwd=root, capture_output=True, check=False
        )
        assert (ran.stdout, ran.stderr) == (b"set()\n", b"")

    def test_versions_are_short_texts(self) -> None:
        assert recurrence.VERSION
        assert tzdata_version()[:2] == "20"
