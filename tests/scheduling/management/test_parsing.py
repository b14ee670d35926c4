from argparse import ArgumentTypeError
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.test import override_settings
from hypothesis import given
from hypothesis import strategies as st

from scheduling import recurrence
from scheduling.management import parsing
from scheduling.management.parsing import Moment

BERLIN = ZoneInfo("Europe/Berlin")


class TestDurations:
    @pytest.mark.parametrize(
        ("text", "length"),
        [
            ("90s", timedelta(seconds=90)),
            ("15m", timedelta(minutes=15)),
            ("2h", timedelta(hours=2)),
            ("3d", timedelta(days=3)),
            ("1w", timedelta(weeks=1)),
            ("1h30m", timedelta(hours=1, minutes=30)),
            ("1w2d3h4m5s", timedelta(days=9, hours=3, minutes=4, seconds=5)),
            (" 5m ", timedelta(minutes=5)),
            ("36500d", timedelta(days=36_500)),
        ],
    )
    def test_they_are_read_with_their_units(self, text: str, length: timedelta) -> None:
        assert parsing.duration(text) == length

    @pytest.mark.parametrize(
        "text",
        ["", " ", "5", "5x", "m", "1.5h", "-5m", "+5m", "30m1h", "5 m", "5M", "\u0665m", "PT5M"],
    )
    def test_anything_else_is_refused_with_how_to_write_it(self, text: str) -> None:
        with pytest.raises(ArgumentTypeError, match="is not a duration: write 90s"):
            parsing.duration(text)

    @pytest.mark.parametrize("text", ["0s", "0d0h", "36501d", "3000000d", "9" * 30 + "s"])
    def test_lengths_that_no_clock_can_count_are_refused(self, text: str) -> None:
        with pytest.raises(ArgumentTypeError, match="at most 36500d"):
            parsing.duration(text)

    def test_even_thousands_of_digits_are_a_clear_error(self) -> None:
        with pytest.raises(ArgumentTypeError, match="out of range") as refused:
            parsing.duration("9" * 10_000 + "d")
        assert len(str(refused.value)) < 200


class TestMoments:
    @pytest.mark.parametrize(
        "text",
        [
            "2026-12-01T06:00:00Z",
            "2026-12-01T07:00+01:00",
            "2026-12-01 06:00+00:00",
            "2026-12-01T06:00",
        ],
    )
    def test_they_are_read_with_an_offset_or_in_the_project_s_zone(self, text: str) -> None:
        assert parsing.moment(text) == Moment(datetime(2026, 12, 1, 6, tzinfo=UTC))

    @override_settings(TIME_ZONE="Europe/Berlin")
    def test_a_date_is_its_midnight(self) -> None:
        assert parsing.moment("2026-12-01").at == datetime(2026, 11, 30, 23, tzinfo=UTC)

    @override_settings(TIME_ZONE="Europe/Berlin")
    def test_a_wall_clock_in_the_spring_gap_is_the_first_instant_after_it(self) -> None:
        read = parsing.moment("2026-03-29T02:30")
        assert read.at == datetime(2026, 3, 29, 1, tzinfo=UTC)
        assert "does not exist in Europe/Berlin" in read.note

    @override_settings(TIME_ZONE="Europe/Berlin")
    def test_a_wall_clock_that_comes_twice_is_the_first(self) -> None:
        read = parsing.moment("2026-10-25T02:30")
        assert read.at == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
        assert "occurs twice in Europe/Berlin" in read.note

    @pytest.mark.parametrize(
        "text", ["", "yesterday", "2026-13-01", "2026-11-31", "12:00", "2026-12-01T25:00", "1e9"]
    )
    def test_anything_else_is_refused_with_how_to_write_it(self, text: str) -> None:
        with pytest.raises(ArgumentTypeError, match="is not an ISO 8601 time: write 2026"):
            parsing.moment(text)

    @pytest.mark.parametrize("text", ["9000-01-01", "9999-12-31T23:59:59Z"])
    def test_years_that_leave_no_room_are_refused(self, text: str) -> None:
        with pytest.raises(ArgumentTypeError, match="out of range"):
            parsing.moment(text)

    @pytest.mark.parametrize("text", ["0001-01-01T00:00+14:00", "9999-12-31T23:59-14:00"])
    def test_instants_outside_of_all_calendars_are_refused(self, text: str) -> None:
        with pytest.raises(ArgumentTypeError):
            parsing.moment(text)


wall_clocks = st.datetimes(datetime(1990, 1, 1), datetime(2099, 12, 31)).map(  # noqa: DTZ001
    lambda wall: wall.replace(second=0, microsecond=0)
)
zones = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])


@given(wall_clocks, zones)
def test_wall_clocks_are_read_as_cron_reads_them(wall: datetime, zone: str) -> None:
    rule = recurrence.cron(f"{wall.minute} {wall.hour} {wall.day} {wall.month} *", zone)
    read = parsing.on_wall_clock(wall, ZoneInfo(zone)).at
    assert recurrence.next_after(rule, read - timedelta(microseconds=1)) == read


@pytest.mark.parametrize("wall", ["2026-03-29 02:00:00", "2026-03-29 02:59:59.999999"])
def test_the_whole_gap_is_one_instant(wall: str) -> None:
    read = parsing.on_wall_clock(datetime.fromisoformat(wall), BERLIN)
    assert read.at == datetime(2026, 3, 29, 1, tzinfo=UTC)


class TestMomentsOrDurations:
    def test_it_reads_both(self) -> None:
        assert parsing.moment_or_duration("2h") == timedelta(hours=2)
        assert parsing.moment_or_duration("2026-12-01T06:00Z") == Moment(
            datetime(2026, 12, 1, 6, tzinfo=UTC)
        )

    def test_it_refuses_what_is_neither(self) -> None:
        with pytest.raises(ArgumentTypeError, match="neither a duration"):
            parsing.moment_or_duration("soon")

    def test_it_refuses_a_duration_that_is_too_long(self) -> None:
        with pytest.raises(ArgumentTypeError, match="at most 36500d"):
            parsing.moment_or_duration("3000000d")


class TestJson:
    def test_arrays_and_objects_are_read(self) -> None:
        assert parsing.json_array('[1, "a", null]') == [1, "a", None]
        assert parsing.json_object('{"a": [1]}') == {"a": [1]}

    @pytest.mark.parametrize(
        ("read", "text", "message"),
        [
            (parsing.json_array, "[1, 2", "is not JSON"),
            (parsing.json_array, "", "is not JSON"),
            (parsing.json_array, '{"a": 1}', "is not a JSON array"),
            (parsing.json_array, "[NaN]", "NaN is not a JSON number"),
            (parsing.json_array, "[" * 100_000, "nested too deeply"),
            (parsing.json_array, f"[{'9' * 10_000}]", "is not JSON"),
            (parsing.json_object, "[]", "is not a JSON object"),
            (parsing.json_object, "{'a': 1}", "is not JSON"),
            (parsing.json_object, "null", "is not a JSON object"),
        ],
    )
    def test_anything_else_is_refused_in_one_short_line(
        self, read: Callable[[str], Any], text: str, message: str
    ) -> None:
        with pytest.raises(ArgumentTypeError, match=message) as refused:
            read(text)
        assert len(str(refused.value)) < 300


class TestNumbersAndIds:
    @pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "many", "32768", "9" * 5000, "\u0663"])
    def test_counts_begin_at_one(self, text: str) -> None:
        with pytest.raises(ArgumentTypeError, match="is not a whole number from 1"):
            parsing.count(text)

    @pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("2.5", 2.5), ("10", 10), ("2m", 120)])
    def test_seconds_may_be_a_duration_too(self, text: str, seconds: float) -> None:
        assert parsing.seconds(text) == seconds

    @pytest.mark.parametrize("text", ["-1", "nan", "inf", "a.task", ""])
    def test_other_seconds_are_refused(self, text: str) -> None:
        with pytest.raises(ArgumentTypeError, match="is not a number of seconds"):
            parsing.seconds(text)

    def test_an_id_is_a_uuid(self) -> None:
        with pytest.raises(ArgumentTypeError, match="is not a run's id"):
            parsing.run_id("17")
