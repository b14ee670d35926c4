"""Cron rules at changes of clocks, one class for each kind of change."""

from datetime import UTC, datetime

import pytest

from scheduling.recurrence import (
    count_between,
    cron,
    latest_between,
    next_after,
    occurrences_between,
)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def fires(expression: str, zone: str, a: str, b: str) -> list[str]:
    """The occurrences between two UTC instants, as short UTC texts; counted in both ways."""
    rule = cron(expression, zone)
    found = list(occurrences_between(rule, utc(a), utc(b)))
    assert count_between(rule, utc(a), utc(b)) == len(found)
    assert latest_between(rule, utc(a), utc(b)) == (found[-1] if found else None)
    return [due.strftime("%m-%d %H:%M") for due in found]


class TestNewYorkSpring:
    """2026-03-08: 02:00 EST becomes 03:00 EDT at 07:00 UTC."""

    A, B = "2026-03-07T12:00", "2026-03-09T12:00"

    def test_a_fixed_time_in_the_gap_runs_right_after_it(self) -> None:
        assert fires("30 2 * * *", "America/New_York", self.A, self.B) == [
            "03-08 07:00",
            "03-09 06:30",
        ]

    def test_fixed_times_in_one_gap_coincide(self) -> None:
        found = fires("0,20,40 2 * * *", "America/New_York", "2026-03-08T00:00", "2026-03-08T12:00")
        assert found == ["03-08 07:00"]

    def test_they_coincide_with_a_time_at_the_end_of_the_gap_too(self) -> None:
        found = fires("0,30 2,3 * * *", "America/New_York", "2026-03-08T00:00", "2026-03-08T12:00")
        assert found == ["03-08 07:00", "03-08 07:30"]

    def test_the_end_of_the_gap_is_not_yielded_after_itself(self) -> None:
        rule = cron("30 2 * * *", "America/New_York")
        assert next_after(rule, utc("2026-03-08T07:00")) == utc("2026-03-09T06:30")

    def test_it_is_found_from_the_last_moment_before_the_gap(self) -> None:
        rule = cron("15 2 * * *", "America/New_York")
        before = utc("2026-03-08T06:59:59.999999")
        assert next_after(rule, before) == utc("2026-03-08T07:00")

    def test_a_fixed_time_in_the_gap_keeps_its_weekday(self) -> None:
        found = fires("30 2 * * sun", "America/New_York", "2026-03-01T12:00", "2026-03-16T12:00")
        assert found == ["03-08 07:00", "03-15 06:30"]

    def test_a_wildcard_goes_on_evenly(self) -> None:
        found = fires("*/30 * * * *", "America/New_York", "2026-03-08T05:59", "2026-03-08T08:00")
        assert found == ["03-08 06:00", "03-08 06:30", "03-08 07:00", "03-08 07:30", "03-08 08:00"]

    def test_times_of_a_range_in_the_gap_do_not_occur(self) -> None:
        found = fires("30 1-3 * * *", "America/New_York", "2026-03-08T05:00", "2026-03-08T12:00")
        assert found == ["03-08 06:30", "03-08 07:30"]

    @pytest.mark.parametrize("minute", ["*/20", "*/30", "*", "0-59/20", "10-50", "0,30-45", "5-5"])
    def test_steps_in_the_gap_run_once_right_after_it(self, minute: str) -> None:
        rule = f"{minute} 2 * * *"
        found = fires(rule, "America/New_York", "2026-03-08T00:00", "2026-03-08T23:00")
        assert found == ["03-08 07:00"]

    def test_they_do_not_silence_the_other_hours_of_their_day(self) -> None:
        found = fires("*/15 2,14 * * *", "America/New_York", "2026-03-08T00:00", "2026-03-09T00:00")
        assert found == ["03-08 07:00", "03-08 18:00", "03-08 18:15", "03-08 18:30", "03-08 18:45"]

    def test_they_coincide_with_a_step_at_the_end_of_the_gap(self) -> None:
        found = fires(
            "*/30 1,2,3 * * *", "America/New_York", "2026-03-08T00:00", "2026-03-09T00:00"
        )
        assert found == ["03-08 06:00", "03-08 06:30", "03-08 07:00", "03-08 07:30"]

    def test_steps_in_the_gap_keep_their_weekday(self) -> None:
        found = fires("*/30 2 * * sun", "America/New_York", "2026-03-08T00:00", "2026-03-15T06:00")
        assert found == ["03-08 07:00", "03-15 06:00"]
        assert (
            fires("*/30 2 * * mon", "America/New_York", "2026-03-08T00:00", "2026-03-09T05:00")
            == []
        )

    def test_the_end_of_the_gap_is_not_yielded_twice_for_steps(self) -> None:
        rule = cron("*/30 2 * * *", "America/New_York")
        assert next_after(rule, utc("2026-03-08T06:59:59.999999")) == utc("2026-03-08T07:00")
        assert next_after(rule, utc("2026-03-08T07:00")) == utc("2026-03-09T06:00")


class TestNewYorkAutumn:
    """2026-11-01: 02:00 EDT becomes 01:00 EST at 06:00 UTC; 01:00 to 02:00 is shown twice."""

    def test_a_fixed_time_in_the_repeated_hour_runs_once_at_its_first_pass(self) -> None:
        found = fires("30 1 * * *", "America/New_York", "2026-10-31T12:00", "2026-11-02T12:00")
        assert found == ["11-01 05:30", "11-02 06:30"]

    def test_a_fixed_rule_asked_within_the_second_pass_waits_for_the_next_day(self) -> None:
        rule = cron("0,45 1 * * *", "America/New_York")
        assert next_after(rule, utc("2026-11-01T06:30")) == utc("2026-11-02T06:00")

    def test_a_minutely_rule_fires_180_times_in_the_three_hours(self) -> None:
        found = fires("* * * * *", "America/New_York", "2026-11-01T04:59", "2026-11-01T07:59")
        assert len(found) == 180

    def test_a_wildcard_runs_through_both_passes(self) -> None:
        found = fires("30 * * * *", "America/New_York", "2026-11-01T04:00", "2026-11-01T08:00")
        assert found == ["11-01 04:30", "11-01 05:30", "11-01 06:30", "11-01 07:30"]

    def test_a_rule_that_names_only_the_repeated_hour_comes_back_after_the_change(self) -> None:
        found = fires("*/30 1 * * *", "America/New_York", "2026-11-01T00:00", "2026-11-01T12:00")
        assert found == ["11-01 05:00", "11-01 05:30", "11-01 06:00", "11-01 06:30"]

    def test_a_yearly_rule_comes_back_too(self) -> None:
        rule = cron("0-30 1 1 11 *", "America/New_York")
        assert next_after(rule, utc("2026-11-01T05:45")) == utc("2026-11-01T06:00")


class TestBerlin:
    """2026-03-29 02:00 becomes 03:00, 2026-10-25 03:00 becomes 02:00, both at 01:00 UTC."""

    def test_it_moves_a_daily_job_by_an_hour_of_utc_and_no_more(self) -> None:
        found = fires("0 9 * * *", "Europe/Berlin", "2026-03-28T00:00", "2026-03-30T23:00")
        assert found == ["03-28 08:00", "03-29 07:00", "03-30 07:00"]

    def test_it_runs_a_time_in_the_gap_after_it(self) -> None:
        assert fires("59 2 29 3 *", "Europe/Berlin", "2026-01-01", "2026-12-31") == ["03-29 01:00"]

    def test_it_runs_a_repeated_time_once(self) -> None:
        assert fires("0 2 25 10 *", "Europe/Berlin", "2026-01-01", "2026-12-31") == ["10-25 00:00"]

    def test_a_year_of_a_minutely_rule_has_every_minute_of_utc(self) -> None:
        rule = cron("* * * * *", "Europe/Berlin")
        assert count_between(rule, utc("2026-01-01"), utc("2027-01-01")) == 365 * 1440


class TestLordHowe:
    """Half an hour: 2026-10-04 02:00 becomes 02:30; 2026-04-05 02:00 becomes 01:30."""

    ZONE = "Australia/Lord_Howe"

    def test_a_fixed_time_in_the_half_hour_gap_runs_after_it(self) -> None:
        assert fires("15 2 * * *", self.ZONE, "2026-10-03T12:00", "2026-10-04T12:00") == [
            "10-03 15:30"
        ]

    def test_a_time_after_the_half_hour_gap_is_its_own(self) -> None:
        found = fires("15,45 2 * * *", self.ZONE, "2026-10-03T12:00", "2026-10-04T12:00")
        assert found == ["10-03 15:30", "10-03 15:45"]

    def test_a_time_in_the_repeated_half_hour_runs_once(self) -> None:
        found = fires("15,45 1 * * *", self.ZONE, "2026-04-04T12:00", "2026-04-05T12:00")
        assert found == ["04-04 14:15", "04-04 14:45"]

    def test_steps_in_the_half_hour_gap_run_once_and_those_after_it_at_their_own_times(
        self,
    ) -> None:
        a, b = "2026-10-03T12:00", "2026-10-04T12:00"
        assert fires("*/15 2 * * *", self.ZONE, a, b) == ["10-03 15:30", "10-03 15:45"]
        assert fires("*/20 2 * * *", self.ZONE, a, b) == ["10-03 15:30", "10-03 15:40"]
        assert fires("10-25 2 * * *", self.ZONE, a, b) == ["10-03 15:30"]
        assert fires("35-45/10 2 * * *", self.ZONE, a, b) == ["10-03 15:35", "10-03 15:45"]

    def test_a_wildcard_repeats_half_an_hour(self) -> None:
        found = fires("0,30 * * * *", self.ZONE, "2026-04-04T14:00", "2026-04-04T16:00")
        assert found == ["04-04 14:30", "04-04 15:00", "04-04 15:30", "04-04 16:00"]
        wall_clocks = fires("45 * * * *", self.ZONE, "2026-04-04T14:00", "2026-04-04T16:00")
        assert wall_clocks == ["04-04 14:45", "04-04 15:15"]


class TestMidnightGaps:
    """Days that begin at 01:00 in Beirut, Havana and Cairo."""

    def test_beirut_runs_a_midnight_job_at_one(self) -> None:
        found = fires("0 0 * * *", "Asia/Beirut", "2026-03-28T00:00", "2026-03-30T00:00")
        assert found == ["03-28 22:00", "03-29 21:00"]

    def test_havana_runs_a_midnight_job_at_one(self) -> None:
        found = fires("30 0 * * *", "America/Havana", "2026-03-07T12:00", "2026-03-09T12:00")
        assert found == ["03-08 05:00", "03-09 04:30"]

    def test_havana_runs_the_steps_of_a_missing_midnight_hour_at_one(self) -> None:
        found = fires("*/10 0 * * *", "America/Havana", "2026-03-08T00:00", "2026-03-09T04:10")
        assert found == ["03-08 05:00", "03-09 04:00", "03-09 04:10"]

    def test_cairo_keeps_the_weekday_of_a_missing_midnight(self) -> None:
        found = fires("0 0 * * fri", "Africa/Cairo", "2026-04-23T00:00", "2026-04-25T00:00")
        assert found == ["04-23 22:00"]

    def test_havana_runs_a_midnight_that_comes_twice_once(self) -> None:
        found = fires("0 0 * * *", "America/Havana", "2026-10-31T12:00", "2026-11-02T12:00")
        assert found == ["11-01 04:00", "11-02 05:00"]

    def test_beirut_repeats_the_last_hour_of_a_day_for_a_wildcard(self) -> None:
        found = fires("0 * 24 10 *", "Asia/Beirut", "2026-10-24T19:00", "2026-10-25T12:00")
        assert found == ["10-24 20:00", "10-24 21:00"]


class TestSkippedAndRepeatedDays:
    """Zones that crossed the date line."""

    def test_apia_runs_the_jobs_of_the_day_it_left_out_once_at_its_end(self) -> None:
        found = fires("0 9 * * *", "Pacific/Apia", "2011-12-29T12:00", "2012-01-01T00:00")
        assert found == ["12-29 19:00", "12-30 10:00", "12-30 19:00", "12-31 19:00"]

    def test_apia_runs_a_job_of_that_friday_alone(self) -> None:
        found = fires("0 9 30 12 fri", "Pacific/Apia", "2011-12-01", "2012-12-01")
        assert found == ["12-30 10:00"]

    def test_apia_leaves_out_the_hours_of_that_day(self) -> None:
        assert len(fires("0 * * * *", "Pacific/Apia", "2011-12-30T00:00", "2011-12-31T00:00")) == 24
        assert fires("0 * 30 12 *", "Pacific/Apia", "2011-12-01", "2012-01-15") == []

    def test_apia_runs_the_steps_of_the_day_it_left_out_once_at_its_end(self) -> None:
        assert fires("*/20 9 30 12 *", "Pacific/Apia", "2011-12-01", "2012-12-01") == [
            "12-30 10:00"
        ]

    def test_kwajalein_left_out_a_day_in_1993(self) -> None:
        """From Friday 20 August straight to Sunday 22 August."""
        found = fires("*/30 9,21 21 8 *", "Pacific/Kwajalein", "1993-08-01", "1993-12-01")
        assert found == ["08-21 12:00"]

    def test_kwajalein_runs_a_day_that_came_twice_once(self) -> None:
        found = fires("0 9 * * *", "Pacific/Kwajalein", "1969-09-29T12:00", "1969-10-02T12:00")
        assert found == ["09-29 22:00", "10-01 21:00"]

    def test_kiritimati_left_out_the_last_day_of_1994(self) -> None:
        found = fires("0 12 * * *", "Pacific/Kiritimati", "1994-12-30T00:00", "1995-01-02T00:00")
        assert found == ["12-30 22:00", "12-31 10:00", "12-31 22:00", "01-01 22:00"]


class TestPoliticalChanges:
    def test_istanbul_stays_on_summer_time_from_2016(self) -> None:
        found = fires("0 9 30 * *", "Europe/Istanbul", "2016-09-01", "2016-12-01")
        assert found == ["09-30 06:00", "10-30 06:00", "11-30 06:00"]
        assert fires("0 9 1 12 *", "Europe/Istanbul", "2015-11-01", "2015-12-31") == ["12-01 07:00"]

    def test_caracas_moves_by_half_an_hour(self) -> None:
        """2007-12-09: 03:00 became 02:30; 2016-05-01: 02:30 became 03:00."""
        zone = "America/Caracas"
        assert fires("45 2 9 12 *", zone, "2007-12-01", "2007-12-31") == ["12-09 06:45"]
        assert fires("*/15 2 9 12 *", zone, "2007-12-09T06:00", "2007-12-10") == [
            "12-09 06:15",
            "12-09 06:30",
            "12-09 06:45",
            "12-09 07:00",
            "12-09 07:15",
        ]
        assert fires("45 2 1 5 *", zone, "2016-04-01", "2016-05-31") == ["05-01 07:00"]
        assert fires("*/20 2 1 5 *", zone, "2016-04-01", "2016-05-31") == [
            "05-01 06:30",
            "05-01 06:50",
            "05-01 07:00",
        ]

    def test_casablanca_changes_twice_around_ramadan(self) -> None:
        found = fires("0 12 1 * *", "Africa/Casablanca", "2024-02-15", "2024-05-15")
        assert found == ["03-01 11:00", "04-01 12:00", "05-01 11:00"]

    def test_monrovia_had_an_offset_with_seconds(self) -> None:
        rule = cron("0 9 * * *", "Africa/Monrovia")
        assert next_after(rule, utc("1971-06-01")) == utc("1971-06-01T09:44:30")


class TestTheTurnOfTheYear:
    """Changes whose gap or repeated time lies across the start of a UTC year."""

    def test_niamey_runs_a_time_repeated_in_the_new_year_once(self) -> None:
        """1912 began twice: at 23:51:32 UTC the clocks went from 00:00:00 to 22:51:32."""
        found = fires("30 23 * * *", "Africa/Niamey", "1911-12-31T12:00", "1912-01-02T12:00")
        assert found == ["12-31 23:21", "01-02 00:30"]

    def test_niamey_repeats_it_for_a_wildcard(self) -> None:
        found = fires("*/30 23 * * *", "Africa/Niamey", "1911-12-31T12:00", "1912-01-01T12:00")
        assert found == ["12-31 22:51", "12-31 23:21", "01-01 00:00", "01-01 00:30"]

    def test_palmer_went_back_three_hours_at_the_very_turn(self) -> None:
        found = fires("0 22 31 12 *", "Antarctica/Palmer", "1964-12-01", "1965-12-01")
        assert found == ["12-31 22:00"]

    def test_mcmurdo_went_ahead_twelve_hours_at_the_very_turn(self) -> None:
        found = fires("0 6 * * *", "Antarctica/McMurdo", "1955-12-31T00:00", "1956-01-02T00:00")
        assert found == ["12-31 06:00", "01-01 00:00", "01-01 18:00"]


class TestZonesWithoutChanges:
    def test_kolkata_has_the_same_offset_all_year(self) -> None:
        found = fires("30 9 1 * *", "Asia/Kolkata", "2026-01-01", "2026-12-31")
        assert found == [f"{month:02}-01 04:00" for month in range(1, 13)]

    def test_utc_is_utc(self) -> None:
        assert fires("30 2 * * *", "UTC", "2026-03-08", "2026-03-10") == [
            "03-08 02:30",
            "03-09 02:30",
        ]


class TestTheEndOfTheCentury:
    """2099 and 2100 follow today's rules; 2100 is not a leap year."""

    def test_new_york_still_has_its_gap(self) -> None:
        found = fires("30 2 * * *", "America/New_York", "2099-03-07T12:00", "2099-03-09T12:00")
        assert found == ["03-08 07:00", "03-09 06:30"]

    def test_new_york_still_repeats_an_hour(self) -> None:
        found = fires("30 * * * *", "America/New_York", "2100-11-07T04:00", "2100-11-07T08:00")
        assert found == ["11-07 04:30", "11-07 05:30", "11-07 06:30", "11-07 07:30"]

    def test_there_is_no_29_february_in_2100(self) -> None:
        rule = cron("0 0 29 2 *", "Europe/Berlin")
        assert next_after(rule, utc("2096-03-01")) == utc("2104-02-28T23:00")

    def test_a_century_of_a_daily_fixed_rule_has_one_occurrence_a_day(self) -> None:
        rule = cron("30 2 * * *", "America/New_York")
        a = utc("2000-01-01T12:00")
        assert count_between(rule, a, utc("2100-01-01T12:00")) == 36_525


class TestTheEdgesOfTheCalendar:
    def test_nothing_occurs_past_2200(self) -> None:
        assert next_after(cron("0 0 1 1 *", "UTC"), utc("2199-01-02")) is None

    def test_instants_far_away_are_no_error(self) -> None:
        rule = cron("0 0 1 1 *", "Asia/Tokyo")
        ages = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)
        assert count_between(rule, *ages) == 300
        assert next_after(rule, ages[1]) is None
        assert latest_between(rule, *ages) == utc("2199-12-31T15:00")
        assert next_after(rule, utc("2199-12-31T14:59")) == utc("2199-12-31T15:00")
        assert next_after(rule, utc("2199-12-31T15:00")) is None
