"""Rows for the tests of this app."""

from datetime import date
from typing import Any

from notifications.models import Delivery, LifecycleId, Reminder
from notifications.tasks import deliver, sweep
from scheduling.jobs import enqueue
from scheduling.models import FINAL, Run

# Sixty days before it, a sweep on 2026-11-20 is the first to see it.
EXPIRY = date(2027, 1, 19)


def make_record(lcid: str = "A-1", expires_on: date | str = EXPIRY, **fields: Any) -> LifecycleId:
    fields = {
        "name": "Grants portal 4",
        "requester_name": "Ada Moreau",
        "requester_email": "ada@example.org",
        **fields,
    }
    record = LifecycleId.objects.create(lcid=lcid, expires_on=expires_on, **fields)
    record.refresh_from_db()
    return record


def make_reminder(days_before: int = 60) -> Reminder:
    return Reminder.objects.get_or_create(days_before=days_before)[0]


def make_delivery(record: LifecycleId | None = None, **fields: Any) -> Delivery:
    """Make a delivery with a waiting run."""
    record = record or make_record()
    fields = {
        "reminder": make_reminder(),
        "expires_on": record.expires_on,
        "recipient": record.requester_email,
        **fields,
    }
    if "run_id" not in fields:
        fields["run_id"] = enqueue(deliver, [0]).id
    delivery: Delivery = Delivery.objects.create(record=record, **fields)
    return delivery


def make_run(state: str, reason: str = "") -> Run:
    """Make a run in that state, as if it had gone through the others."""
    run = enqueue(deliver, [0])
    finished = run.created_at if state in FINAL else None
    Run.objects.filter(pk=run.pk).update(state=state, reason=reason, finished_at=finished)
    return Run.objects.get(pk=run.pk)


def sweep_on(*days: str) -> list[int]:
    """Sweep on each of these dates; return how many deliveries to send each has made."""
    return [sweep(day)["to_send"] for day in days]


def deliveries() -> list[tuple[str, str, int, str]]:
    """Return lcid, expiry, lead time and state of each delivery, in a fixed order."""
    rows = Delivery.objects.with_state().order_by("record_id", "expires_on", "reminder")
    return [
        (row.record_id, str(row.expires_on), row.reminder.days_before, row.state) for row in rows
    ]
