"""The admin's pages of calendars, and their effect on the pages of schedules."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from scheduling.models import Calendar, ExcludedDate, Policy
from scheduling.schedules import calendars
from tests.scheduling.admin.test_schedules import form as schedule_form
from tests.scheduling.admin.test_schedules import page_of
from tests.scheduling.admin_pages import grant
from tests.scheduling.ledger import crontab, schedule

pytestmark = pytest.mark.django_db

LIST = reverse("admin:scheduling_calendar_changelist")
ADD_PAGE = reverse("admin:scheduling_calendar_add")


@pytest.fixture
def german() -> Calendar:
    return calendars.add("DE", by="ann", weekdays=[5, 6], country="DE",
                         dates={date(2026, 12, 24): "closed"})  # fmt: skip


def address(calendar: Calendar, page: str = "change") -> str:
    return reverse(f"admin:scheduling_calendar_{page}", args=[calendar.pk])


def form(**changes: Any) -> dict[str, Any]:
    """Return the data that a browser would send for a new calendar, with some fields changed."""
    data: dict[str, Any] = {
        "name": "office", "description": "", "weekdays": ["5", "6"], "country": "",
        "subdivision": "", "dates-TOTAL_FORMS": "1", "dates-INITIAL_FORMS": "0",
        "dates-MIN_NUM_FORMS": "0", "dates-MAX_NUM_FORMS": "1000",
        "dates-0-date": "", "dates-0-reason": "",
    }  # fmt: skip
    return {**data, **changes}


class TestCalendars:
    def test_the_list_says_what_is_off_and_who_follows(
        self, admin_client: Client, german: Calendar
    ) -> None:
        schedule(policy={"calendar": german})
        page = admin_client.get(LIST).content.decode()
        for words in ("Saturday, Sunday", "Germany", "1 schedule<"):
            assert words in page

    def test_one_is_made_with_its_dates(self, admin_client: Client) -> None:
        data = form(country="DE", subdivision="BY",
                    **{"dates-0-date": "2026-12-24", "dates-0-reason": "closed"})  # fmt: skip
        assert admin_client.post(ADD_PAGE, data).status_code == 302
        made = Calendar.objects.get()
        assert (made.weekdays, made.country, made.subdivision) == ([5, 6], "DE", "BY")
        assert [str(day) for day in made.dates.all()] == ["2026-12-24 closed"]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"weekdays": [str(n) for n in range(7)]}, "All seven days of the week are off"),
            ({"country": "XX"}, "Select a valid choice"),
            ({"country": "DE", "subdivision": "XX"}, "DE has no subdivision"),
            ({"subdivision": "BY"}, "A subdivision needs its country"),
            ({"dates-0-date": "2026-02-30"}, "Enter a valid date"),
        ],
    )
    def test_what_cannot_be_is_refused(
        self, admin_client: Client, changes: dict[str, Any], message: str
    ) -> None:
        answer = admin_client.post(ADD_PAGE, form(**changes))
        assert message in answer.content.decode()
        assert not Calendar.objects.exists()

    def test_its_page_shows_the_days_of_two_years_and_who_follows(
        self, admin_client: Client, german: Calendar
    ) -> None:
        schedule("weekly report", policy={"calendar": german})
        page = admin_client.get(address(german)).content.decode()
        assert page.count("Christmas Day</td>") == 2
        assert "weekly report</a>" in page
        assert 'value="5" id="id_weekdays_5" checked' in page.replace("  ", " ")

    def test_a_new_date_is_a_day_off(self, admin_client: Client, german: Calendar) -> None:
        (day,) = german.dates.all()
        data = form(name="DE", **{
            "dates-TOTAL_FORMS": "2", "dates-INITIAL_FORMS": "1", "dates-0-id": day.pk,
            "dates-0-calendar": german.pk, "dates-0-date": "2026-12-24", "dates-0-reason": "closed",
            "dates-1-calendar": german.pk, "dates-1-date": "2026-12-31", "dates-1-reason": "",
        })  # fmt: skip
        assert admin_client.post(address(german), data).status_code == 302
        german.refresh_from_db()
        assert calendars.days_off_of(german).is_off(date(2026, 12, 31))

    def test_days_off_that_would_silence_a_schedule_are_refused(
        self, admin_client: Client, german: Calendar
    ) -> None:
        saturdays = calendars.add("Saturdays", by="ann", weekdays=[5])
        schedule("on Mondays", crontab=crontab("0", "9", day_of_week="1"),
                 policy={"calendar": saturdays})  # fmt: skip
        answer = admin_client.post(address(saturdays), form(name="Saturdays", weekdays=["0", "5"]))
        assert "would never fire again" in answer.content.decode()
        assert "on Mondays" in answer.content.decode()
        saturdays.refresh_from_db()
        assert saturdays.weekdays == [5]
        data = form(name="Saturdays", weekdays=["5", "6"])
        assert admin_client.post(address(saturdays), data).status_code == 302

    def test_a_date_off_that_would_silence_a_schedule_is_refused(
        self, admin_client: Client
    ) -> None:
        saturdays = calendars.add("Saturdays", by="ann", weekdays=[5])
        day = timezone.localdate() + timedelta(days=400)
        day += timedelta(days=day.weekday() == 5)
        noon = datetime.combine(day, time(12), UTC)
        schedule("on that day", crontab=crontab("0", "12"), start_time=noon, expires=noon,
                 policy={"calendar": saturdays})  # fmt: skip
        data = form(name="Saturdays", weekdays=["5"], **{
            "dates-0-calendar": saturdays.pk, "dates-0-date": f"{day}",
        })  # fmt: skip
        answer = admin_client.post(address(saturdays), data)
        assert "on that day" in answer.content.decode()
        assert not ExcludedDate.objects.exists()

    def test_a_calendar_with_thousands_of_dates_is_checked_with_them(
        self, admin_client: Client
    ) -> None:
        many = calendars.add("many", by="ann", weekdays=[5])
        first = timezone.localdate().toordinal()
        many.dates.bulk_create(
            ExcludedDate(calendar=many, date=date.fromordinal(first + n))
            for n in range(4000)
            if date.fromordinal(first + n).weekday() not in (0, 5)
        )
        schedule("on Mondays", crontab=crontab("0", "9"), policy={"calendar": many})
        answer = admin_client.post(address(many), form(name="many", weekdays=["0", "5"]))
        assert "on Mondays" in answer.content.decode()

    def test_one_in_use_cannot_be_deleted(self, admin_client: Client, german: Calendar) -> None:
        schedule(policy={"calendar": german})
        assert admin_client.post(address(german, "delete"), {"post": "yes"}).status_code == 403
        Policy.objects.all().delete()
        assert admin_client.post(address(german, "delete"), {"post": "yes"}).status_code == 302
        assert not ExcludedDate.objects.exists()

    def test_whoever_may_only_look_may_only_look(self, client: Client, german: Calendar) -> None:
        client.force_login(grant("view_calendar"))
        page = client.get(address(german)).content.decode()
        assert "closed" in page
        assert '<input type="submit"' not in page
        assert client.post(address(german), form()).status_code == 403

    def test_a_calendar_with_thousands_of_dates_still_has_a_page(
        self, admin_client: Client, german: Calendar
    ) -> None:
        first = date(2027, 1, 1).toordinal()
        german.dates.bulk_create(
            ExcludedDate(calendar=german, date=date.fromordinal(first + n)) for n in range(2000)
        )
        page = admin_client.get(address(german)).content.decode()
        assert "dates-TOTAL_FORMS" not in page
        assert "2,001 single dates: change them in code" in page

    def test_a_country_that_is_no_longer_known_is_shown(self, admin_client: Client) -> None:
        odd = Calendar.objects.create(name="odd", country="XX")
        page = admin_client.get(address(odd)).content.decode()
        assert "XX (unknown)" in page
        assert "no public holidays are known" in page


class TestSchedules:
    @pytest.fixture
    def sundays(self) -> PeriodicTask:
        return schedule(crontab=crontab("0", "9", day_of_week="0", timezone="Europe/Berlin"))

    def test_one_that_would_only_be_skipped_is_refused(
        self, admin_client: Client, sundays: PeriodicTask, german: Calendar
    ) -> None:
        data = schedule_form(sundays, **{"policy-0-calendar": german.pk})
        answer = admin_client.post(page_of(sundays), data)
        assert "it names days off of calendar" in answer.content.decode()
        assert not Policy.objects.filter(schedule=sundays).exists()
        data["policy-0-excluded_day"] = "next"
        assert admin_client.post(page_of(sundays), data).status_code == 302
        assert Policy.objects.get(schedule=sundays).excluded_day == "next"

    def test_its_page_says_what_the_calendar_does(
        self, admin_client: Client, sundays: PeriodicTask, german: Calendar
    ) -> None:
        policy = Policy.objects.create(schedule=sundays, calendar=german, excluded_day="previous")
        assert "moved from Sun" in admin_client.get(page_of(sundays)).content.decode()
        policy.excluded_day = "skip"
        policy.save()
        page = admin_client.get(page_of(sundays)).content.decode()
        assert "skipped: calendar &#x27;DE&#x27;" in page

    def test_rule_and_calendar_are_changed_at_once(
        self, admin_client: Client, german: Calendar
    ) -> None:
        row = schedule(crontab=crontab("0", "9"), policy={"calendar": german})
        sunday = crontab("0", "9", day_of_week="0")
        data = schedule_form(row, crontab=sunday.pk, **{"policy-0-calendar": ""})
        assert admin_client.post(page_of(row), data).status_code == 302
        row.refresh_from_db()
        assert row.crontab_id == sunday.pk
