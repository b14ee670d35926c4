"""Instants that Python cannot hold, written by raw SQL, on the pages and in the commands."""

from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.urls import reverse
from django_celery_beat.models import ClockedSchedule
from pytest_django import Settings

from scheduling import clock
from scheduling.models import State
from tests.scheduling.commands import called
from tests.scheduling.ledger import interval, run, schedule

pytestmark = pytest.mark.django_db

ODD = ["infinity", "-infinity", "12000-01-01", "0044-03-15 BC", "9999-12-31 23:59:59.999999Z"]


@pytest.fixture(params=ODD)
def odd(request: Any, settings: Settings, bare_schedules: None) -> str:
    settings.TIME_ZONE = "Asia/Tokyo"
    return str(request.param)


def write(sql: str, *parameters: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)


def test_a_schedule_with_such_a_start_and_end_is_shown(odd: str, admin_client: Client) -> None:
    row = schedule("odd", interval=interval(5), policy={})
    write("UPDATE django_celery_beat_periodictask SET expires = %s, start_time = %s, "
          "last_run_at = %s", odd, odd, odd)  # fmt: skip
    write("UPDATE scheduling_policy SET paused_at = %s, paused_until = %s", odd, odd)
    write("UPDATE scheduling_plan SET last_due_at = %s, anchor_at = %s", odd, odd)
    assert_pages_answer(
        admin_client,
        reverse("admin:scheduling_schedule_changelist"),
        reverse("admin:scheduling_schedule_change", args=[row.pk]),
        reverse("admin:scheduling_schedule_delete", args=[row.pk]),
    )
    for words in (["list"], ["list", "--json"], ["show", "odd"], ["next", "odd"]):
        assert called("schedule", *words).code in (0, 1)
    assert "odd" in called("schedule", "list").out


def test_a_one_off_of_such_an_instant_is_shown(odd: str, admin_client: Client) -> None:
    instant = ClockedSchedule.objects.create(clocked_time=clock.now())
    row = schedule("odd", clocked=instant, one_off=True)
    write("UPDATE django_celery_beat_clockedschedule SET clocked_time = %s", odd)
    assert_pages_answer(
        admin_client,
        reverse("admin:django_celery_beat_clockedschedule_changelist"),
        reverse("admin:django_celery_beat_clockedschedule_change", args=[row.clocked_id]),
        reverse("admin:scheduling_schedule_changelist"),
        reverse("admin:scheduling_schedule_change", args=[row.pk]),
    )
    assert "odd" in called("schedule", "list").out


@pytest.mark.parametrize("state", [State.SCHEDULED, State.RUNNING, State.FAILED])
def test_a_run_with_such_limits_is_shown(odd: str, state: State, admin_client: Client) -> None:
    made = run(state)
    write("UPDATE scheduling_run SET expires_at = %s, deadline = %s, due_at = %s, run_at = %s",
          odd, odd, odd, odd)  # fmt: skip
    assert_pages_answer(
        admin_client,
        reverse("admin:scheduling_run_changelist"),
        reverse("admin:scheduling_run_change", args=[made.pk]),
    )
    for words in (["list"], ["list", "--json"], ["show", str(made.pk)]):
        answer = called("run", *words)
        assert answer.code == 0, answer.err
        assert str(made.pk)[:8] in answer.out


def assert_pages_answer(client: Client, *pages: str) -> None:
    assert [client.get(page).status_code for page in pages] == [200] * len(pages)
