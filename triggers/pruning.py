"""Deletes old attempts, in batches."""

from django.conf import settings

from scheduling import clock
from triggers.models import Attempt

BATCH = 5000


def prune() -> int:
    """Delete attempts older than settings.KEEP_FAILED (0: none); return how many."""
    if not settings.KEEP_FAILED:
        return 0
    old = Attempt.objects.filter(at__lt=clock.now() - settings.KEEP_FAILED).order_by("at")
    deleted = 0
    while ids := list(old.values_list("pk", flat=True)[:BATCH]):
        deleted += Attempt.objects.filter(pk__in=ids).delete()[0]
    return deleted
