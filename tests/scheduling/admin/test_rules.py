"""The pages of crontabs, intervals, instants and solar events, and the boxes that find them."""

from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import models
from django.test import Client
from django.urls import reverse
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    SolarSchedule,
)
from django_celery_results.models import TaskResult
from pytest_django import Settings

from scheduling.models import ManagedBy, Policy
from scheduling.schedules import calendars

pytestmark = pytest.mark.django_db

ADD = "tests.jobs.tasks.add"
CRONTAB = {
    "minute": "0",
    "hour": "5",
    "day_of_month": "*",
    "month_of_year": "*",
    "day_of_week": "1",
    "timezone": "Europe/Berlin",
}


@pytest.fixture
def rules(db: None) -> dict[str, models.Model]:
    return {
        "crontab": CrontabSchedule.objects.create(**CRONTAB),
        "interval": IntervalSchedule.objects.create(every=5, period="minutes"),
        "clocked": ClockedSchedule.objects.create(clocked_time=datetime(2087, 3, 1, tzinfo=UTC)),
        "solar": SolarSchedule.objects.create(event="sunrise", latitude=52.5, longitude=13.4),
    }


def page_of(rule: models.Model, page: str = "change") -> str:
    return reverse(f"admin:django_celery_beat_{rule._meta.model_name}_{page}", args=[rule.pk])


def test_an_interval_shorter_than_a_second_is_refused(
    admin_client: Client, rules: dict[str, Any]
) -> None:
    new = reverse("admin:django_celery_beat_intervalschedule_add")
    for page in (new, page_of(rules["interval"])):
        response = admin_client.post(page, {"every": "1", "period": "microseconds"})
        assert "an interval of 1 microseconds is shorter than a second" in response.text
    assert IntervalSchedule.objects.get().every == 5
    assert admin_client.post(new, {"every": "1", "period": "seconds"}).status_code == 302


@pytest.mark.parametrize("kind", ["crontab", "interval", "clocked", "solar"])
def test_a_rules_page_links_to_its_schedules_and_lists_none(
    admin_client: Client, rules: dict[str, Any], kind: str
) -> None:
    PeriodicTask.objects.create(
        name="one of very many", task=ADD, one_off=True, **{kind: rules[kind]}
    )
    model = rules[kind]._meta.model_name
    assert (
        admin_client.get(reverse(f"admin:django_celery_beat_{model}_changelist")).status_code == 200
    )
    page = admin_client.get(page_of(rules[kind])).content.decode()
    assert "one of very many" not in page
    link = f"{reverse('admin:scheduling_schedule_changelist')}?rule={kind}-{rules[kind].pk}"
    assert link in page
    assert [row.name for row in admin_client.get(link).context["cl"].result_list] == [
        "one of very many"
    ]


def test_a_rule_in_use_cannot_be_deleted(admin_client: Client, rules: dict[str, Any]) -> None:
    PeriodicTask.objects.create(name="nightly", task=ADD, crontab=rules["crontab"])
    for kind, status in (("crontab", 403), ("interval", 302)):
        response = admin_client.post(page_of(rules[kind], "delete"), {"post": "yes"})
        assert response.status_code == status
    assert PeriodicTask.objects.filter(name="nightly").exists()
    assert not IntervalSchedule.objects.filter(pk=rules["interval"].pk).exists()


def test_a_rule_of_a_schedule_in_code_cannot_be_changed(
    admin_client: Client, rules: dict[str, Any]
) -> None:
    schedule = PeriodicTask.objects.create(name="nightly", task=ADD, crontab=rules["crontab"])
    Policy.objects.create(schedule=schedule, managed_by=ManagedBy.CODE)
    page = admin_client.get(page_of(rules["crontab"])).content.decode()
    assert "managed by code" in page
    assert admin_client.post(page_of(rules["crontab"]), {**CRONTAB, "hour": "6"}).status_code == 403


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"day_of_month": "31", "month_of_year": "2"}, "does not fire within ten years"),
        ({"day_of_week": "mon#1"}, "mon#1"),
        ({"hour": "25"}, "25"),
    ],
)
def test_a_crontab_that_cannot_fire_is_refused(
    admin_client: Client, rules: dict[str, Any], changes: dict[str, str], complaint: str
) -> None:
    response = admin_client.post(page_of(rules["crontab"]), {**CRONTAB, **changes})
    assert response.status_code == 200
    assert complaint in str(response.context["errors"])
    rules["crontab"].refresh_from_db()
    assert rules["crontab"].day_of_week == "1"


def test_an_edit_that_would_silence_a_schedule_is_refused_with_its_name(
    admin_client: Client, rules: dict[str, Any]
) -> None:
    sundays = calendars.add("Sundays", by="ann", weekdays=[6])
    for name, calendar in (("office", sundays), ("free", None)):
        row = PeriodicTask.objects.create(name=name, task=ADD, crontab=rules["crontab"])
        Policy.objects.create(schedule=row, calendar=calendar)
    response = admin_client.post(page_of(rules["crontab"]), {**CRONTAB, "day_of_week": "0"})
    (complaint,) = response.context["errors"][0]
    assert "a schedule would never fire again, or not within ten years: 'office'" in complaint
    rules["crontab"].refresh_from_db()
    assert rules["crontab"].day_of_week == "1"


def test_a_crontabs_edit_plans_its_schedules_anew(
    admin_client: Client, rules: dict[str, Any]
) -> None:
    schedule = PeriodicTask.objects.create(name="nightly", task=ADD, crontab=rules["crontab"])
    type(schedule.plan).objects.update(needs_plan=False)
    assert admin_client.post(page_of(rules["crontab"]), {**CRONTAB, "hour": "6"}).status_code == 302
    schedule.plan.refresh_from_db()
    assert schedule.plan.needs_plan


@pytest.mark.parametrize(
    ("kind", "term", "found"),
    [
        ("crontab", "", True),
        ("crontab", "0 5", True),
        ("crontab", "0 5 * * 1", True),
        ("crontab", "5", False),
        ("crontab", "0 5 Europe/Ber", True),
        ("crontab", "0 5 UTC", False),
        ("interval", "5 min", True),
        ("interval", "6 min", False),
        ("interval", "9" * 5000, False),
        ("clocked", "2087-03", True),
        ("clocked", "2088", False),
        ("solar", "sunr", True),
        ("solar", "dusk", False),
    ],
)
def test_the_forms_boxes_find_rules_by_what_one_types(
    admin_client: Client, rules: dict[str, Any], kind: str, term: str, found: bool
) -> None:
    query = {
        "app_label": "scheduling",
        "model_name": "schedule",
        "field_name": kind,
        "term": term,
    }
    results = admin_client.get("/admin/autocomplete/", query).json()["results"]
    assert (str(rules[kind].pk) in [result["id"] for result in results]) == found


def test_stored_results_are_found_by_id_and_without_counting_them_all(
    admin_client: Client,
) -> None:
    TaskResult.objects.create(task_id="some-task", status="SUCCESS")
    page = reverse("admin:django_celery_results_taskresult_changelist")
    assert len(admin_client.get(page, {"q": "some-task"}).context["cl"].result_list) == 1
    assert not admin_client.get(page, {"q": "other"}).context["cl"].result_list


@pytest.mark.parametrize(
    ("at", "zone"),
    [
        (datetime(1, 1, 1, 0, 30, tzinfo=UTC), "America/New_York"),
        (datetime(9999, 12, 31, 23, 30, tzinfo=UTC), "Europe/Berlin"),
    ],
)
def test_pages_show_an_instant_for_which_the_zone_has_no_clocks(
    admin_client: Client, settings: Settings, at: datetime, zone: str
) -> None:
    settings.TIME_ZONE = zone
    row = ClockedSchedule.objects.create(clocked_time=at)
    schedule = PeriodicTask(
        name="at the end", task=ADD, clocked=row, one_off=True, start_time=at, expires=at
    )
    PeriodicTask.objects.bulk_create([schedule])
    pages = [
        reverse("admin:django_celery_beat_clockedschedule_changelist"),
        page_of(row),
        page_of(row, "history"),
        reverse("admin:scheduling_schedule_changelist"),
        reverse("admin:scheduling_schedule_change", args=[schedule.pk]),
        "/admin/autocomplete/?app_label=scheduling&model_name=schedule&field_name=clocked",
    ]
    for page in pages:
        answer = admin_client.get(page)
        assert answer.status_code == 200
        assert "30:00" in answer.content.decode()
