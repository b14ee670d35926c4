"""The pages of recurring failures, through Django's test client, on real Postgres."""

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse
from pytest_django import DjangoAssertNumQueries, Settings

from scheduling.models import FailureGroup, Run
from tests.scheduling.admin_pages import grant, texts
from tests.scheduling.failures.test_groups import fail, settle
from tests.scheduling.ledger import schedule

pytestmark = pytest.mark.django_db

LIST = "/admin/scheduling/failuregroup/"


@pytest.fixture(autouse=True)
def _nobody_is_told(settings: Settings) -> None:
    settings.ALERTS_TO = []


def failed(**columns: Any) -> FailureGroup:
    fail(**columns)
    settle()
    return FailureGroup.objects.latest("last_seen_at")


def page_of(group: FailureGroup) -> str:
    return reverse("admin:scheduling_failuregroup_change", args=[group.pk])


def listed(client: Client, **query: Any) -> list[FailureGroup]:
    return list(client.get(LIST, query).context["cl"].result_list)


def act(client: Client, name: str, *groups: FailureGroup) -> list[str]:
    data = {"action": name, "_selected_action": [group.pk for group in groups], "index": 0}
    return texts(client.post(LIST, data, follow=True))


class TestTheList:
    def test_it_is_there_when_nothing_has_failed(self, admin_client: Client) -> None:
        assert "0 recurring failures" in admin_client.get(LIST).content.decode()

    def test_it_shows_what_failed_how_often_and_where(self, admin_client: Client) -> None:
        row = schedule("nightly")
        fail(row)
        failed(row=row)
        page = admin_client.get(LIST).content.decode()
        for shown in ("ValueError", "jobs.<wbr>tasks", "nightly", "open"):
            assert shown in page

    def test_what_was_seen_last_comes_first(self, admin_client: Client) -> None:
        groups = [failed(error=f"{name}: x") for name in ("KeyError", "OSError", "IOError")]
        assert listed(admin_client) == groups[::-1]

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ({}, True),
            ({"state": "resolved"}, False),
            ({"state": "all"}, True),
            ({"seen": "hour"}, True),
            ({"task": "tests.jobs.tasks.add"}, True),
            ({"task": "no.such.task"}, False),
            ({"q": "Value"}, True),
            ({"q": "Key"}, False),
        ],
    )
    def test_each_filter_finds_what_it_says(
        self, admin_client: Client, query: dict[str, str], found: bool
    ) -> None:
        failed()
        assert bool(listed(admin_client, **query)) == found

    def test_its_cost_does_not_grow_with_its_rows(
        self, admin_client: Client, django_assert_max_num_queries: DjangoAssertNumQueries
    ) -> None:
        for n in range(20):
            fail(schedule(f"s{n}"), f"E{n}: x")
        settle()
        with django_assert_max_num_queries(8):
            admin_client.get(LIST)


class TestThePage:
    def test_it_shows_the_last_error_and_leads_to_its_run_and_schedules(
        self, admin_client: Client
    ) -> None:
        row = schedule("nightly")
        made = fail(row, "ValueError: <b>could not</b>")
        settle()
        page = admin_client.get(page_of(FailureGroup.objects.get())).content.decode()
        assert "ValueError: &lt;b&gt;could not" in page
        assert "<b>could" not in page
        assert reverse("admin:scheduling_run_change", args=[made.pk]) in page
        assert reverse("admin:scheduling_schedule_change", args=[row.pk]) in page

    def test_it_is_there_when_its_run_and_its_schedule_are_gone(self, admin_client: Client) -> None:
        row = schedule("nightly")
        group = failed(row=row)
        Run.objects.all().delete()
        row.delete()
        page = admin_client.get(page_of(group)).content.decode()
        assert "the run was deleted" in page
        assert "nightly" in page

    def test_nothing_can_be_written(self, admin_client: Client) -> None:
        group = failed()
        assert admin_client.post(page_of(group), {"count": 9}).status_code == 403
        assert admin_client.get(f"{LIST}add/").status_code == 403


class TestActions:
    def test_resolve_and_reopen(self, admin_client: Client) -> None:
        group = failed()
        (said,) = act(admin_client, "resolve", group)
        assert said == "Resolved 1 failure: the owners are notified of the next failure at once."
        group.refresh_from_db()
        assert group.resolved_by == "admin"
        assert LogEntry.objects.latest("pk").change_message == "Resolved"
        assert listed(admin_client) == []
        data = {"action": "reopen", "_selected_action": [group.pk], "index": 0}
        response = admin_client.post(f"{LIST}?state=all", data, follow=True)
        assert texts(response) == ["Reopened 1 failure."]

    def test_a_page_offers_what_makes_sense(self, admin_client: Client) -> None:
        group = failed()
        assert [name for name, _ in admin_client.get(page_of(group)).context["buttons"]] == [
            "resolve"
        ]
        response = admin_client.post(f"{LIST}{group.pk}/act/resolve/", follow=True)
        assert [name for name, _ in response.context["buttons"]] == ["reopen"]

    def test_what_is_resolved_already_stays_so(self, admin_client: Client) -> None:
        group = failed()
        FailureGroup.objects.update(resolved_at=group.last_seen_at, resolved_by="ben")
        response = admin_client.post(f"{LIST}{group.pk}/act/resolve/", follow=True)
        assert texts(response) == [
            "Nothing was changed: every selected group is already in that state."
        ]

    def test_whoever_may_only_look_can_do_nothing(self, client: Client) -> None:
        group = failed()
        client.force_login(grant("view_failuregroup"))
        assert client.get(page_of(group)).context["buttons"] == []
        assert client.post(f"{LIST}{group.pk}/act/resolve/").status_code == 403
        act(client, "resolve", group)
        group.refresh_from_db()
        assert group.resolved_at is None

    def test_whoever_has_no_right_sees_nothing(self, client: Client) -> None:
        client.force_login(grant("view_run"))
        assert client.get(LIST).status_code == 403
