"""The pages of backfills, through Django's test client, on real Postgres."""

from datetime import UTC, datetime

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse
from pytest_django import DjangoAssertNumQueries

from scheduling import schedules
from scheduling.history import backfill_pace, backfilling
from scheduling.models import Backfill, Run, State
from tests.scheduling.admin_pages import grant, texts
from tests.scheduling.ledger import crontab, schedule, set_plan

pytestmark = pytest.mark.django_db

LIST = "/admin/scheduling/backfill/"


@pytest.fixture
def backfill() -> Backfill:
    """Five runs of 2026-11-20, one of which was released."""
    row = schedule(crontab=crontab("0"))
    set_plan(row, datetime(2099, 1, 1, tzinfo=UTC))
    first, last = (datetime(2026, 11, 20, hour, tzinfo=UTC) for hour in (8, 12))
    made = backfilling.start(
        schedules.named(row.name), first, last, by="ann", now=datetime(2026, 11, 21, tzinfo=UTC)
    )
    backfill_pace.release()
    return made


def page_of(backfill: Backfill) -> str:
    return reverse("admin:scheduling_backfill_change", args=[backfill.pk])


def test_the_list_says_what_and_where_it_stands(admin_client: Client, backfill: Backfill) -> None:
    page = admin_client.get(LIST).content.decode()
    assert "nightly" in page
    assert "2026-11-20 08:00:00 UTC" in page
    assert "going on" in page


@pytest.mark.usefixtures("backfill")
def test_the_list_costs_the_same_however_many_runs_there_are(
    admin_client: Client, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    with django_assert_max_num_queries(10):
        admin_client.get(LIST)


def test_its_page_says_how_far_it_is(admin_client: Client, backfill: Backfill) -> None:
    page = admin_client.get(page_of(backfill)).content.decode()
    assert "1 scheduled, 4 held" in page
    assert "origin__exact=backfill" in page
    run = Run.objects.filter(backfill_id=backfill.pk)[0]
    shown = admin_client.get(reverse("admin:scheduling_run_change", args=[run.pk]))
    assert page_of(backfill) in shown.content.decode()


def test_its_button_cancels_all_that_waits(admin_client: Client, backfill: Backfill) -> None:
    answer = admin_client.post(
        f"{page_of(backfill).removesuffix('change/')}act/cancel/", follow=True
    )
    assert texts(answer) == ["Cancelled the backfill of nightly."]
    assert set(Run.objects.values_list("state", flat=True)) == {State.CANCELLED}
    assert Backfill.objects.get().cancelled_by == "admin"
    assert LogEntry.objects.get().get_change_message() == "Cancelled"
    page = admin_client.get(page_of(backfill)).content.decode()
    assert "act/cancel/" not in page


def test_the_lists_action_refuses_what_has_ended(admin_client: Client, backfill: Backfill) -> None:
    backfilling.cancel(backfill.pk, by="ann")
    data = {"action": "cancel", "_selected_action": [backfill.pk], "index": 0}
    (text,) = texts(admin_client.post(LIST, data, follow=True))
    assert "has ended already" in text


def test_who_may_only_look_cannot_cancel(client: Client, backfill: Backfill) -> None:
    client.force_login(grant("view_backfill"))
    page = client.get(page_of(backfill))
    assert page.status_code == 200
    assert "act/cancel/" not in page.content.decode()
    act = f"{page_of(backfill).removesuffix('change/')}act/cancel/"
    assert client.post(act).status_code == 403
    assert not Run.objects.filter(state=State.CANCELLED).exists()


@pytest.mark.parametrize("path", ["add/", "{}/delete/"])
def test_nobody_writes_one_by_hand(admin_client: Client, backfill: Backfill, path: str) -> None:
    assert admin_client.get(LIST + path.format(backfill.pk)).status_code == 403
