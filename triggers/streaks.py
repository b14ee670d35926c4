"""A trigger that has only failed for days is disabled, after a warning a day before."""

import logging
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Coalesce

from scheduling.jobs import enqueue
from scheduling.logs import event
from scheduling.models import Priority
from scheduling.outgoing import addresses
from triggers.models import Trigger

logger = logging.getLogger(__name__)

NOTIFY = "scheduling.tasks.tell"
DISABLED_AFTER = timedelta(days=5)
WARNED_BEFORE = timedelta(days=1)


def note_success(trigger_id: UUID) -> None:
    failing = Trigger.objects.filter(pk=trigger_id, failing_since__isnull=False)
    failing.update(failing_since=None, warned_at=None)


def note_failure(trigger_id: UUID, error: str, now: datetime) -> None:
    """Note a failed attempt; warn the owners or disable the trigger if that has gone on for days.

    A trigger is disabled a day after the warning or later, however seldom it is fired.
    """
    Trigger.objects.filter(pk=trigger_id).update(failing_since=Coalesce(F("failing_since"), now))
    failing = Trigger.objects.filter(pk=trigger_id, enabled=True)
    if failing.filter(
        failing_since__lte=now - DISABLED_AFTER, warned_at__lte=now - WARNED_BEFORE
    ).exists():
        disable(trigger_id, f"It has only failed since {DISABLED_AFTER.days} days or more: {error}")
        return
    with transaction.atomic():
        due = failing.filter(
            failing_since__lte=now - (DISABLED_AFTER - WARNED_BEFORE), warned_at__isnull=True
        )
        if due.update(warned_at=now):
            _notify(
                trigger_id, "fails", f"It has only failed for days: {error}\n"
                "If it still fails after one more day, it will be disabled.",
            )  # fmt: skip
            event(logger, "trigger_warned", trigger=trigger_id)


def disable(trigger_id: UUID, reason: str) -> bool:
    """Disable a trigger and notify its owners; False if it was disabled already."""
    with transaction.atomic():
        enabled = Trigger.objects.filter(pk=trigger_id, enabled=True)
        if not enabled.update(enabled=False, disabled_reason=reason):
            return False
        _notify(trigger_id, "was disabled", reason)
    event(logger, "trigger_disabled", trigger=trigger_id, reason=reason)
    return True


def enable(trigger_id: UUID) -> bool:
    """Enable a trigger, with nothing left of its failures; False if it was enabled already."""
    disabled = Trigger.objects.filter(pk=trigger_id, enabled=False)
    return bool(
        disabled.update(enabled=True, disabled_reason="", failing_since=None, warned_at=None)
    )


def _notify(trigger_id: UUID, change: str, text: str) -> None:
    trigger = Trigger.objects.get(pk=trigger_id)
    message = {"subject": f"the trigger {trigger.name} {change}", "text": text}
    for address in addresses.split(trigger.owner) or settings.ALERTS_TO:
        enqueue(NOTIFY, (address, message), priority=Priority.HIGH)
