"""The jobs of this app, which call `sweep` and `delivery`."""

from datetime import date
from typing import Any

from celery import shared_task

from notifications import delivery as deliveries
from notifications import sweep as sweeps
from notifications.dates import parse_day, today
from scheduling.jobs import Job, PermanentError, current_run


@shared_task(base=Job)
def sweep(on: str | None = None) -> dict[str, Any]:
    """Find records that expire, and make a delivery with a run of its own for each due reminder.

    `on` is a date such as 2026-11-20, in place of today's; its mails count from it as well.
    """
    return sweeps.sweep(deliver, _day(on), call_on=on).as_result()


@shared_task(base=Job, max_attempts=12)
def deliver(delivery_id: int, on: str | None = None) -> str:
    """Send one delivery; 12 attempts are about three and a half hours."""
    run = current_run()
    return deliveries.deliver(delivery_id, _day(on), run_id=run.id if run else None)


def _day(on: str | None) -> date:
    if on is None:
        return today()
    try:
        return parse_day(on)
    except (TypeError, ValueError):
        raise PermanentError(f"on must be a date such as 2026-11-20, not {on!r}.") from None
