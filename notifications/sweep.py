"""The daily sweep: finds records that expire, and makes deliveries and runs that send them.

A record is due while 0 <= days left <= lead time. Of the lead times that apply to it, the smallest
sends and the larger ones are recorded as superseded, so that a record which came in late, or was
missed by a week of sweeps, is reminded once. A lead time that is reached later sends again.

The sweep keeps no state: it reads the due records in the order of their expiry, a chunk in each
transaction, and adds missing deliveries. A sweep that was killed, that runs beside another one, or
that runs twice a day, changes no existing delivery.
"""

import logging
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Max, Q

from notifications.models import LifecycleId, Reminder, Status
from scheduling.ids import uuid7
from scheduling.jobs import Call, Job, enqueue_many
from scheduling.logs import event

logger = logging.getLogger(__name__)

CHUNK = 1000

# For each of %(records)s the lead times that apply and are not settled: new rows, and rows of which
# nothing was sent because the record had been extended or retired, and which are due once more
# since it was moved back. No larger lead time sends after a smaller one, whenever it was added.
# The order of the insert is the order of the locks: two sweeps at once cannot deadlock.
ADD_DELIVERIES = """
WITH applicable AS (
    SELECT record.id, record.lcid, record.expires_on, record.requester_email,
           reminder.id AS reminder_id, reminder.days_before,
           min(reminder.days_before) OVER (PARTITION BY record.id) AS smallest
      FROM notifications_lifecycleid record
      JOIN notifications_reminder reminder
        ON reminder.enabled AND reminder.days_before >= record.expires_on - %(today)s::date
     WHERE record.id = ANY(%(records)s) AND record.status = 'active'
       AND record.expires_on >= %(today)s::date
), judged AS (
    SELECT *, days_before = smallest AND NOT EXISTS (
               SELECT FROM notifications_delivery other
                 JOIN notifications_reminder lead ON lead.id = other.reminder_id
                WHERE other.lcid = applicable.lcid AND other.expires_on = applicable.expires_on
                  AND other.superseded_at IS NULL AND lead.days_before < applicable.days_before
           ) AS sends
      FROM applicable
), missing AS (
    SELECT judged.*, row_number() OVER (PARTITION BY sends ORDER BY expires_on, id) AS n
      FROM judged
     WHERE NOT EXISTS (
               SELECT FROM notifications_delivery made
                WHERE made.lcid = judged.lcid AND made.expires_on = judged.expires_on
                  AND made.reminder_id = judged.reminder_id
                  AND (made.superseded_at IS NULL OR NOT sends))
)
INSERT INTO notifications_delivery AS delivery
    (lcid, expires_on, reminder_id, recipient, run_id, superseded_at, superseded_because)
SELECT lcid, expires_on, reminder_id, requester_email,
       CASE WHEN sends THEN (%(run_ids)s::uuid[])[n] END,
       CASE WHEN NOT sends THEN clock_timestamp() END,
       CASE WHEN sends THEN '' ELSE 'a smaller lead time applies' END
  FROM missing ORDER BY expires_on, id, days_before
    ON CONFLICT (lcid, expires_on, reminder_id) DO UPDATE
       SET recipient = excluded.recipient, run_id = excluded.run_id,
           superseded_at = NULL, superseded_because = ''
     WHERE delivery.superseded_at IS NOT NULL AND excluded.superseded_at IS NULL
RETURNING delivery.id, CASE WHEN delivery.superseded_at IS NULL THEN delivery.run_id END
"""


@dataclass
class Swept:
    """The result of a sweep, in numbers of records and of deliveries."""

    on: str
    due: int = 0
    to_send: int = 0
    superseded: int = 0

    def as_result(self) -> dict[str, Any]:
        return asdict(self)


class Place(NamedTuple):
    """Where a record stands in the order of expiries."""

    expires_on: date
    id: int


def sweep(deliver: Job, today: date, *, call_on: str | None = None) -> Swept:
    """Make the deliveries that are due `today`, each with a run of the job `deliver`.

    `deliver` is called with the delivery's id, and with `call_on` if that is given.
    """
    swept = Swept(on=today.isoformat())
    longest = Reminder.objects.filter(enabled=True).aggregate(days=Max("days_before"))["days"]
    if longest is None:
        return swept
    last_day = today + timedelta(days=longest)
    place = Place(today, 0)
    while page := _next_page(place, last_day):
        place = page[-1]
        added = settle_page(page, today, deliver, call_on)
        swept.due += len(page)
        swept.to_send += sum(run_id is not None for _, run_id in added)
        swept.superseded += sum(run_id is None for _, run_id in added)
    event(logger, "sweep_finished", **swept.as_result())
    return swept


def _next_page(after: Place, last_day: date) -> list[Place]:
    records = (
        LifecycleId.objects.filter(status=Status.ACTIVE)
        .filter(expires_on__gte=after.expires_on, expires_on__lte=last_day)
        .filter(Q(expires_on__gt=after.expires_on) | Q(id__gt=after.id))
        .order_by("expires_on", "id")
        .values_list("expires_on", "id")
    )
    return [Place(*row) for row in records[:CHUNK]]


def settle_page(
    page: list[Place], today: date, deliver: Job, call_on: str | None
) -> list[tuple[int, UUID | None]]:
    """Add the deliveries of one page, and runs for deliveries that send, in one transaction."""
    parameters: dict[str, Any] = {
        "today": today,
        "records": [place.id for place in page],
        "run_ids": [uuid7() for _ in page],
    }
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(ADD_DELIVERIES, parameters)
            added: list[tuple[int, UUID | None]] = cursor.fetchall()
        arguments = (call_on,) if call_on else ()
        enqueue_many(
            deliver,
            (Call((pk, *arguments), id=run_id) for pk, run_id in added if run_id is not None),
        )
    return added
