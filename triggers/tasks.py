"""The jobs of this app: interfaces of `delivery` and `pruning`."""

from typing import Any

from celery import shared_task
from celery.exceptions import Ignore

from scheduling.jobs import Job, current_run
from triggers import delivery, pruning
from triggers.delivery import AskedToWaitError, NotYetError

ATTEMPTS = 12  # about three and a half hours


@shared_task(base=Job, max_attempts=ATTEMPTS)
def fire(trigger: str, **args: Any) -> dict[str, Any]:
    """Send the trigger with this name; the keyword arguments are its `${args.NAME}`."""
    run = current_run()
    try:
        return delivery.fire(trigger, args, run)
    except NotYetError as error:
        if run is None:
            raise
        # Sending itself again makes the call the run's next attempt, without a failure.
        fire.apply_async((trigger,), args, task_id=fire.request.id, countdown=error.seconds)
        raise Ignore from None
    except AskedToWaitError as error:
        raise fire.retry(exc=error, countdown=error.seconds, max_retries=ATTEMPTS - 1) from error


@shared_task(base=Job)
def prune() -> int:
    """Delete attempts that are older than failed runs are kept."""
    return pruning.prune()
