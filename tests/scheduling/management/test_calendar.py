import json
from datetime import date
from typing import Any

import pytest

from scheduling.models import Calendar, Policy
from scheduling.schedules import calendars
from tests.scheduling.commands import called, refusal
from tests.scheduling.ledger import ADD, crontab, schedule

pytestmark = pytest.mark.django_db


@pytest.fixture
def german() -> Calendar:
    return calendars.add("DE", by="ann", weekdays=[5, 6], country="DE", subdivision="BY",
                         dates={date(2026, 12, 24): "closed"})  # fmt: skip


class TestAdd:
    def test_it_makes_one_and_says_what_is_off(self) -> None:
        answer = called(
            "calendar", "add", "DE", "--weekdays", "Sat,sunday", "--country", "de",
            "--subdivision", "BY", "--date", "2026-12-24=closed", "--date", "2026-12-31",
        )  # fmt: skip
        assert answer.lines == ["added 'DE': sat, sun; holidays of DE-BY; 2 dates"]
        made = Calendar.objects.get()
        assert [str(day) for day in made.dates.order_by("date")] == [
            "2026-12-24 closed", "2026-12-31",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["x"], "calendar 'x' has no day off"),
            (["x", "--country", "Germany"], "near it: DE"),
            (["x", "--country", "DE", "--subdivision", "Bavaria"], "DE has no subdivision"),
            (["x", "--subdivision", "BY"], "--subdivision goes with --country only"),
            (["x", "--weekdays", "mon,tue,wed,thu,fri,sat,sun"], "All seven days"),
            (["DE", "--weekdays", "sun"], "there is a calendar 'DE' already"),
            (["x", "--weekdays", "someday"], "'someday' is not a day of the week: write mon, tue"),
            (["x", "--date", "24.12.2026"], "'24.12.2026' is not a date: write 2026-12-24"),
            (["x", "--date", "2026-02-30"], "'2026-02-30' is not a date"),
            (["x", "--date", "9999-01-01"], "out of range"),
            (["x", "--date", f"2026-01-01={'r' * 201}"], "reason: "),
        ],
    )
    @pytest.mark.usefixtures("german")
    def test_what_cannot_be_is_refused_in_a_line(self, words: list[str], message: str) -> None:
        assert message in refusal("calendar", "add", *words)
        assert Calendar.objects.count() == 1


@pytest.mark.usefixtures("german")
class TestLooking:
    def test_the_list(self) -> None:
        answer = called("calendar", "list")
        assert answer.lines[1].split("  ")[0] == "DE"
        assert "sat, sun; holidays of DE-BY; 1 date " in answer.out

    def test_the_list_as_json(self) -> None:
        (found,) = json.loads(called("calendar", "list", "--json").out)
        assert found == {
            "name": "DE", "description": "", "weekdays": ["sat", "sun"], "country": "DE",
            "subdivision": "BY", "dates": [{"date": "2026-12-24", "reason": "closed"}],
            "schedules": 0,
        }  # fmt: skip

    def test_the_days_of_a_year(self) -> None:
        lines = called("calendar", "show", "DE", "--year", "2026").lines
        assert "  Thu 2026-12-24  closed" in lines
        assert "  Fri 2026-12-25  Christmas Day" in lines
        found = json.loads(called("calendar", "show", "DE", "--year", "2027", "--json").out)
        assert found["year"] == 2027
        assert {"date": "2027-01-06", "reason": "Epiphany"} in found["days_off"]

    @pytest.mark.parametrize("year", ["27", "12027", "1899", "next"])
    def test_a_year_is_a_year(self, year: str) -> None:
        assert "is not a year" in refusal("calendar", "show", "DE", "--year", year)

    def test_a_mistyped_name_is_refused_with_what_is_near(self) -> None:
        assert "did you mean 'DE'?" in refusal("calendar", "show", "DEE")


def test_without_calendars_it_says_how_to_make_one() -> None:
    assert "calendar add NAME" in called("calendar", "list").out


class TestRemove:
    def test_one_that_nobody_follows_goes(self, german: Calendar) -> None:
        assert called("calendar", "remove", "DE").lines == ["removed 'DE'"]
        assert not Calendar.objects.exists()

    def test_one_in_use_stays_and_the_users_are_named(self, german: Calendar) -> None:
        for number in range(7):
            schedule(f"s{number}", policy={"calendar": german})
        message = refusal("calendar", "remove", "DE")
        assert "'s0', 's1', 's2', 's3', 's4' and 2 more" in message
        assert Calendar.objects.exists()


@pytest.mark.usefixtures("german")
class TestSchedules:
    def add(self, *words: str, cron: str = "0 9 * * 0") -> Any:
        return called("schedule", "add", "weekly", ADD, "--args", "[1, 2]", "--cron", cron,
                      "--timezone", "Europe/Berlin", "--calendar", "DE", *words)  # fmt: skip

    def test_one_follows_a_calendar(self) -> None:
        assert self.add("--excluded-day", "next").code == 0
        policy = Policy.objects.get(schedule__name="weekly")
        assert (str(policy.calendar), policy.excluded_day) == ("DE", "next")

    def test_the_next_ones_show_where_from(self) -> None:
        self.add("--excluded-day", "next")
        words = ("schedule", "next", "weekly", "--from", "2026-12-19T00:00+01:00", "-n", "2")
        first = called(*words).lines[1]
        assert first.startswith("Mon 2026-12-21 09:00:00 CET")
        assert first.endswith("moved from Sun 2026-12-20")
        rows = json.loads(called(*words, "--json").out)
        assert [row["moved_from"] for row in rows] == ["2026-12-20", "2026-12-27"]
        assert not [row for row in rows if "skipped" in row]

    def test_the_next_ones_show_what_is_skipped(self) -> None:
        self.add(cron="0 9 * * *")
        words = ("schedule", "next", "weekly", "--from", "2026-12-24T12:00Z", "-n", "1")
        assert "skipped: calendar 'DE': 2026-12-25 Christmas Day" in called(*words).out
        (row,) = json.loads(called(*words, "--json").out)
        assert row["skipped"] == "calendar 'DE': 2026-12-25 Christmas Day"
        assert "moved_from" not in row

    def test_one_that_would_only_be_skipped_is_refused(self) -> None:
        answer = self.add()
        assert answer.code == 1
        assert "it names days off of calendar 'DE' only" in answer.err
        assert not Policy.objects.filter(schedule__name="weekly").exists()

    def test_an_edit_that_leaves_only_days_off_is_refused(self) -> None:
        schedule("weekly", crontab=crontab("0", "9", day_of_week="0"))
        edit = ("schedule", "edit", "weekly", "--calendar", "DE")
        assert "names days off of calendar 'DE' only" in refusal(*edit)
        assert called(*edit, "--excluded-day", "previous").code == 0

    def test_a_dry_run_says_what_a_calendar_changes(self) -> None:
        schedule("daily", crontab=crontab("0", "9"))
        answer = called("schedule", "edit", "daily", "--calendar", "DE", "--dry-run")
        assert "adds 0, removes " in answer.out
