from typing import Any

import pytest
from django.db import IntegrityError, connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from notifications.models import Delivery, DeliveryState, LifecycleId, Reminder
from scheduling.models import Run, State
from tests.notifications.factories import make_delivery, make_record, make_reminder, make_run

pytestmark = pytest.mark.django_db


def test_an_lcid_is_there_once() -> None:
    make_record("A-1")
    with pytest.raises(IntegrityError, match="lcid"):
        make_record("A-1")


@pytest.mark.parametrize("fields", [{"status": "paused"}, {"lcid": ""}])
def test_it_refuses_a_record_with(fields: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="lifecycle_"):
        make_record(**fields)


def test_a_row_of_plain_sql_is_active() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO notifications_lifecycleid (lcid, name, expires_on, requester_email) "
            "VALUES ('A-1', 'Grants portal', '2027-01-19', 'ada@example.org')"
        )
    assert LifecycleId.objects.get().status == "active"


def test_a_record_is_reminded_of_a_date_once_for_each_lead_time() -> None:
    delivery = make_delivery()
    make_delivery(delivery.record, reminder=make_reminder(30))
    make_delivery(delivery.record, expires_on="2028-01-19")
    with pytest.raises(IntegrityError, match="delivery_once"):
        make_delivery(delivery.record)


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        (
            {"sent_at": timezone.now, "superseded_at": timezone.now, "superseded_because": "x"},
            "delivery_sent_or_superseded",
        ),
        ({"run_id": None}, "delivery_has_run_or_superseded"),
        ({"superseded_at": timezone.now}, "delivery_superseded_with_reason"),
        ({"superseded_because": "x"}, "delivery_superseded_with_reason"),
    ],
)
def test_it_refuses_a_delivery_with(fields: dict[str, Any], constraint: str) -> None:
    values = {name: value() if callable(value) else value for name, value in fields.items()}
    with pytest.raises(IntegrityError, match=constraint):
        make_delivery(**values)


def test_deleting_a_record_keeps_what_was_sent_for_it() -> None:
    delivery = make_delivery(sent_at=timezone.now())
    LifecycleId.objects.all().delete()
    assert Delivery.objects.with_state().get().state == DeliveryState.SENT
    assert Delivery.objects.get().record_id == delivery.record_id


@pytest.mark.parametrize(
    ("run_state", "state"),
    [
        (State.SCHEDULED, "pending"),
        (State.HELD, "pending"),
        (State.QUEUED, "pending"),
        (State.RUNNING, "pending"),
        (State.FAILED, "failed"),
        (State.EXPIRED, "failed"),
        (State.SKIPPED, "failed"),
        (State.SUCCEEDED, "failed"),
        (State.CANCELLED, "cancelled"),
    ],
)
def test_a_delivery_that_is_not_settled_stands_where_its_run_stands(
    run_state: State, state: str
) -> None:
    make_delivery(run_id=make_run(run_state, reason="550 no such user").pk)
    delivery = Delivery.objects.with_state().get()
    assert (delivery.state, delivery.run_reason) == (state, "550 no such user")


@pytest.mark.parametrize("run_state", [State.RUNNING, State.FAILED, State.SUCCEEDED])
def test_a_sent_delivery_is_sent_whatever_its_run_says(run_state: State) -> None:
    make_delivery(run_id=make_run(run_state).pk, sent_at=timezone.now())
    assert Delivery.objects.with_state().get().state == "sent"


def test_a_pruned_run_leaves_no_delivery_pending() -> None:
    run = make_run(State.FAILED)
    make_delivery(run_id=run.pk)
    Run.objects.filter(pk=run.pk).delete()
    delivery = Delivery.objects.with_state().get()
    assert (delivery.state, delivery.run_state) == ("failed", None)


def test_the_filter_agrees_with_the_state() -> None:
    make_delivery(make_record("sent"), sent_at=timezone.now())
    make_delivery(
        make_record("superseded"),
        run_id=None,
        superseded_at=timezone.now(),
        superseded_because="extended",
    )
    make_delivery(make_record("pending"), run_id=make_run(State.RUNNING).pk)
    make_delivery(make_record("failed"), run_id=make_run(State.FAILED).pk)
    make_delivery(make_record("cancelled"), run_id=make_run(State.CANCELLED).pk)
    for state in DeliveryState:
        assert [row.record_id for row in Delivery.objects.in_state(state)] == [state.value]


@pytest.mark.django_db(transaction=True)
def test_a_migration_makes_the_lead_time_of_60_days() -> None:
    Reminder.objects.all().delete()
    MigrationExecutor(connection).migrate([("notifications", "0001_initial")])
    MigrationExecutor(connection).migrate([("notifications", "0002_remind_60_days_before")])
    assert list(Reminder.objects.values_list("days_before", "enabled")) == [(60, True)]
