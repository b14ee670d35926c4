"""Settles a delivery: sends it, or marks it as superseded if it is not needed any longer.

The row is there before the attempt. The record is read again just before sending. `sent_at` is
committed as soon as the server has accepted the mail: a crash between the two sends it once more,
under the same Message-ID.
"""

import logging
import time
from collections.abc import Callable
from datetime import date
from uuid import UUID

from django.db import InterfaceError, OperationalError, connection
from django.db.models import Exists, OuterRef
from django.db.models.functions import Now

from notifications import mail
from notifications.models import (
    UNSETTLED,
    Delivery,
    DeliveryQuerySet,
    DeliveryState,
    LifecycleId,
    Status,
)
from scheduling.jobs import PermanentError
from scheduling.logs import event
from scheduling.models import UNFINISHED, Run
from scheduling.outgoing.mail import send

logger = logging.getLogger(__name__)

# Seconds to wait for Postgres when it goes away between the server's yes and our note of it.
PAUSES = (0.5, 1, 2, 4, 8, 8)


def deliver(delivery_id: int, today: date, *, run_id: UUID | None) -> str:
    """Send the delivery, unless it is settled already or superseded now; safe to repeat.

    Args:
        delivery_id: the delivery.
        today: the date that the days left are counted from.
        run_id: the run that asks; it becomes the delivery's if its own has ended: so does a replay.

    Returns:
        The DeliveryState that the delivery is in now.

    Raises:
        PermanentError: it cannot be sent, ever, and why.
        Exception: it could not be sent this time.
    """
    unsettled = Delivery.objects.filter(UNSETTLED, pk=delivery_id)
    taken = _take_over(delivery_id, run_id) if run_id else unsettled.exists()
    delivery = (
        Delivery.objects.with_state().select_related("reminder").filter(pk=delivery_id).first()
    )
    if delivery is None:
        raise PermanentError(f"delivery {delivery_id} does not exist.")
    if not taken:
        return str(delivery.state)
    record = LifecycleId.objects.filter(lcid=delivery.record_id).first()
    if record is None:
        return _supersede(unsettled, delivery, "the lifecycle id was deleted since")
    if reason := _why_superseded(delivery, record):
        return _supersede(unsettled, delivery, reason)
    send(mail.reminder(delivery, record, today))
    noted = _persist(lambda: unsettled.update(sent_at=Now(), recipient=record.requester_email))
    name = "delivery_sent" if noted else "delivery_sent_again"
    event(logger, name, delivery=delivery_id, run=delivery.run_id, lcid=record.lcid)
    return DeliveryState.SENT


def _take_over(delivery_id: int, run_id: UUID) -> bool:
    """Make the run the delivery's, unless that is settled or in the hands of an unfinished run."""
    other = Run.objects.filter(pk=OuterRef("run_id"), state__in=UNFINISHED).exclude(pk=run_id)
    free = Delivery.objects.filter(UNSETTLED, ~Exists(other), pk=delivery_id)
    return bool(free.update(run_id=run_id))


def _supersede(unsettled: DeliveryQuerySet, delivery: Delivery, reason: str) -> str:
    if unsettled.update(superseded_at=Now(), superseded_because=reason):
        event(
            logger, "delivery_superseded", delivery=delivery.pk, run=delivery.run_id, reason=reason
        )
    return DeliveryState.SUPERSEDED


def _why_superseded(delivery: Delivery, record: LifecycleId) -> str:
    if record.status != Status.ACTIVE:
        return f"the lifecycle id is {record.status} now"
    if record.expires_on != delivery.expires_on:
        return f"it expires on {record.expires_on} now"
    nearer = (
        Delivery.objects.filter(record__lcid=delivery.record_id, expires_on=delivery.expires_on)
        .filter(superseded_at__isnull=True)
        .filter(reminder__days_before__lt=delivery.reminder.days_before)
        .values_list("reminder__days_before", flat=True)
        .first()
    )
    return "" if nearer is None else f"the reminder of {nearer} days has taken its place"


def _persist(write: Callable[[], int]) -> int:
    """Call `write`, again for some 20 seconds while Postgres restarts; return its result."""
    for pause in PAUSES:
        try:
            return write()
        except (OperationalError, InterfaceError):
            if connection.in_atomic_block:
                raise
            connection.close()
            time.sleep(pause)
    return write()
