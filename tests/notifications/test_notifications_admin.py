from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries, Settings

from notifications.dates import today
from notifications.models import Delivery, DeliveryState, LifecycleId, Reminder
from scheduling.models import State
from tests.notifications.factories import make_delivery, make_record, make_reminder, make_run

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sixty_days")]

RECORDS = "admin:notifications_lifecycleid_changelist"
RECORD = "admin:notifications_lifecycleid_change"
DELIVERIES = "admin:notifications_delivery_changelist"
DELIVERY = "admin:notifications_delivery_change"


@pytest.fixture(autouse=True)
def _static_files(settings: Settings, tmp_path: Path) -> None:
    # WhiteNoise warns of a directory that is not there.
    settings.STATIC_ROOT = tmp_path


def listed(client: Client, page: str, **parameters: Any) -> list[str]:
    response = client.get(reverse(page), parameters)
    assert response.status_code == 200
    rows = response.context["cl"].result_list
    return [row.record_id if isinstance(row, Delivery) else row.lcid for row in rows]


class TestLifecycleIds:
    @pytest.mark.usefixtures("noon")
    def test_they_are_found_by_status_expiry_and_words(self, admin_client: Client) -> None:
        for days in (-1, 0, 7, 30, 60, 61):
            make_record(f"D{days}", today() + timedelta(days=days), name=f"System {days}")
        make_record("retired", today(), status="retired", requester_email="ben@example.org")
        active = {"status__exact": "active"}
        assert listed(admin_client, RECORDS, expires="expired", **active) == ["D-1"]
        assert listed(admin_client, RECORDS, expires="7", **active) == ["D0", "D7"]
        assert len(listed(admin_client, RECORDS, expires="60", **active)) == 4
        assert listed(admin_client, RECORDS, expires="later") == ["D61"]
        assert len(listed(admin_client, RECORDS, expires="nonsense")) == 7
        assert listed(admin_client, RECORDS, q="system 61") == ["D61"]
        assert listed(admin_client, RECORDS, q="ben@example.org") == ["retired"]

    @pytest.mark.usefixtures("noon")
    def test_the_list_shows_the_days_that_are_left(self, admin_client: Client) -> None:
        make_record("A-1", today() + timedelta(days=42))
        make_record("A-2", today() - timedelta(days=1))
        page = admin_client.get(reverse(RECORDS)).content.decode()
        assert '<td class="field-days_left">42</td>' in page
        assert '<td class="field-days_left">expired</td>' in page

    def test_one_can_be_added_and_extended_but_not_renamed(self, admin_client: Client) -> None:
        fields = {
            "lcid": "A-1",
            "name": "Grants portal",
            "expires_on": "2027-01-19",
            "requester_email": "ada@example.org",
            "status": "active",
            "deliveries-TOTAL_FORMS": "0",
            "deliveries-INITIAL_FORMS": "0",
        }
        admin_client.post(reverse("admin:notifications_lifecycleid_add"), fields)
        record = LifecycleId.objects.get(lcid="A-1")
        changed = {**fields, "lcid": "A-2", "expires_on": "2028-01-19"}
        admin_client.post(reverse(RECORD, args=[record.pk]), changed)
        record.refresh_from_db()
        assert (record.lcid, str(record.expires_on)) == ("A-1", "2028-01-19")

    def test_its_page_shows_its_deliveries(self, admin_client: Client) -> None:
        delivery = make_delivery(run_id=make_run(State.FAILED, "550 no such user").pk)
        page = admin_client.get(reverse(RECORD, args=[delivery.record.pk])).content.decode()
        assert "550 no such user" in page
        assert reverse("admin:scheduling_run_change", args=[delivery.run_id]) in page


class TestReminders:
    def test_another_lead_time_can_be_added(self, admin_client: Client) -> None:
        url = reverse("admin:notifications_reminder_add")
        admin_client.post(url, {"days_before": "30", "enabled": "on"})
        page = admin_client.post(url, {"days_before": "3651", "enabled": "on"})
        assert "less than or equal to 3650" in page.content.decode()
        assert list(Reminder.objects.values_list("days_before", flat=True)) == [60, 30]

    def test_one_can_be_switched_off_but_not_become_another(self, admin_client: Client) -> None:
        reminder = Reminder.objects.get()
        url = reverse("admin:notifications_reminder_change", args=[reminder.pk])
        admin_client.post(url, {"days_before": "90"})
        reminder.refresh_from_db()
        assert (reminder.days_before, reminder.enabled) == (60, False)

    def test_one_that_was_used_cannot_be_deleted(self, admin_client: Client) -> None:
        used, unused = make_delivery().reminder, make_reminder(30)
        for reminder, status in ((used, 403), (unused, 302)):
            url = reverse("admin:notifications_reminder_delete", args=[reminder.pk])
            assert admin_client.post(url, {"post": "yes"}).status_code == status
        assert list(Reminder.objects.all()) == [used]


class TestDeliveries:
    @pytest.fixture(autouse=True)
    def _one_of_each(self, sixty_days: Reminder) -> None:
        make_delivery(make_record("sent"), sent_at=timezone.now())
        make_delivery(make_record("pending"))
        make_delivery(make_record("failed"), run_id=make_run(State.FAILED, "550 no").pk)
        make_delivery(make_record("cancelled"), run_id=make_run(State.CANCELLED).pk)
        make_delivery(
            make_record("superseded"),
            reminder=make_reminder(30),
            run_id=None,
            superseded_at=timezone.now(),
            superseded_because="it expires on 2028-01-19 now",
        )

    def test_they_are_found_by_state_lead_time_record_and_recipient(
        self, admin_client: Client
    ) -> None:
        for state in DeliveryState:
            assert listed(admin_client, DELIVERIES, state=state.value) == [state.value]
        thirty = make_reminder(30)
        assert listed(admin_client, DELIVERIES, reminder__id__exact=thirty.pk) == ["superseded"]
        assert listed(admin_client, DELIVERIES, q="failed") == ["failed"]
        assert len(listed(admin_client, DELIVERIES, q="ada@example.org")) == 5

    def test_the_list_says_why_and_leads_to_the_run(self, admin_client: Client) -> None:
        page = admin_client.get(reverse(DELIVERIES)).content.decode()
        failed = Delivery.objects.get(record__lcid="failed")
        assert "550 no" in page
        assert "it expires on 2028-01-19 now" in page
        assert reverse("admin:scheduling_run_change", args=[failed.run_id]) in page

    def test_they_stay_when_the_record_is_gone(self, admin_client: Client) -> None:
        LifecycleId.objects.all().delete()
        assert len(listed(admin_client, DELIVERIES)) == 5
        sent = Delivery.objects.get(sent_at__isnull=False)
        assert admin_client.get(reverse(DELIVERY, args=[sent.pk])).status_code == 200

    def test_nobody_edits_them(self, admin_client: Client) -> None:
        delivery = Delivery.objects.latest("id")
        assert admin_client.post(reverse(DELIVERY, args=[delivery.pk]), {}).status_code == 403
        url = reverse("admin:notifications_delivery_delete", args=[delivery.pk])
        assert admin_client.post(url, {"post": "yes"}).status_code == 403
        assert admin_client.get(reverse("admin:notifications_delivery_add")).status_code == 403

    def test_the_list_asks_the_same_whatever_its_length(
        self, admin_client: Client, django_assert_max_num_queries: DjangoAssertNumQueries
    ) -> None:
        for number in range(50):
            make_delivery(make_record(f"A-{number}"))
        with django_assert_max_num_queries(8):
            admin_client.get(reverse(DELIVERIES))
