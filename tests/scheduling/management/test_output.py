import json
from datetime import UTC, datetime, timedelta

import pytest
from django.test import override_settings

from scheduling import shapes
from scheduling.management import output

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


class TestTables:
    def test_its_columns_are_aligned(self) -> None:
        rows = [("a", "long cell", "x"), ("longer", "b", "")]
        assert list(output.table(("ONE", "TWO", "THREE"), rows)) == [
            "ONE     TWO        THREE",
            "a       long cell  x",
            "longer  b",
        ]

    def test_on_a_terminal_flexible_columns_shrink_until_it_fits(self, terminal: None) -> None:
        rows = [("n" * 120, "t" * 60, "keep this whole")]
        lines = list(output.table(("NAME", "TASK", "STATE"), rows, flexible=(0, 1)))
        assert {len(line) <= 100 for line in lines} == {True}
        assert lines[1].startswith("nnn")
        assert "n…n" in lines[1]
        assert lines[1].endswith("t  keep this whole")

    def test_in_a_pipe_every_cell_is_whole(self) -> None:
        names = ["n" * 20] * output.FITTED_ROWS + ["m" * 300]
        lines = list(output.table(("NAME", "TASK"), ((name, "t") for name in names), flexible=(0,)))
        assert lines[-1] == f"{'m' * 300}  t"

    def test_a_row_that_is_a_text_stands_for_itself(self) -> None:
        assert list(output.table(("A",), [("1",), "  a remark", ("2",)])) == [
            "A",
            "1",
            "  a remark",
            "2",
        ]

    def test_it_prints_a_long_table_as_it_is_read(self) -> None:
        rows = ((str(number),) for number in range(output.FITTED_ROWS * 3))
        lines = output.table(("NUMBER",), rows)
        assert [next(lines), next(lines)] == ["NUMBER", "0"]
        assert next(rows) == (str(output.FITTED_ROWS),)

    def test_what_is_in_it_cannot_steer_a_terminal(self) -> None:
        (_, line) = output.table(("NAME",), [("\x1b[31mred\nnext",)])
        assert line == r"\x1b[31mred\nnext"


@pytest.mark.parametrize("values", [[], [1], [{"a": 1}, {"b": 2}, 3]])
def test_json_arrays_are_json_with_one_element_a_line(values: list[object]) -> None:
    lines = list(output.json_array(values))
    assert json.loads("\n".join(lines)) == values
    assert len(lines) == len(values) + 2


def test_instants_are_iso_8601_in_utc() -> None:
    berlin = datetime.fromisoformat("2026-12-01T06:00:00.25+01:00")
    assert shapes.instant(berlin) == "2026-12-01T05:00:00.250000Z"
    assert shapes.instant(None) is None


class TestTimesForPeople:
    @override_settings(TIME_ZONE="Europe/Berlin")
    def test_they_are_in_the_project_s_zone(self) -> None:
        assert output.clock(NOW + timedelta(hours=2), NOW) == "today 15:00:00"
        assert output.clock(NOW + timedelta(hours=11), NOW) == "2026-11-21 00:00"
        assert output.full_clock(NOW, NOW) == "2026-11-20 13:00:00 CET (now)"

    @pytest.mark.parametrize(
        ("seconds", "words"),
        [
            (0.2, "now"),
            (59, "in 59s"),
            (60, "in 1m"),
            (7500, "in 2h 5m"),
            (7205, "in 2h"),
            (-90_000, "1d 1h ago"),
            (-1, "1s ago"),
        ],
    )
    def test_distances_have_their_two_largest_units(self, seconds: float, words: str) -> None:
        assert output.distance(NOW + timedelta(seconds=seconds), NOW) == words
