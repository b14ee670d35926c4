"""The job that the benches schedule."""

from celery import shared_task


@shared_task
def nothing() -> None:
    """Do nothing: what is measured is the way here."""
