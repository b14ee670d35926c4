"""Encrypts stored secrets again with the newest key."""

from django.db import transaction

from scheduling.outgoing import sealing
from triggers.models import Secret

BATCH = 500


def rotate() -> int:
    """Encrypt every secret with the newest key, in batches; return how many.

    A call that is interrupted does no harm: the next one begins anew.
    """
    done, last = 0, None
    while True:
        with transaction.atomic():
            rows = Secret.objects.select_for_update().order_by("pk")
            batch = list((rows.filter(pk__gt=last) if last else rows)[:BATCH])
            for secret in batch:
                secret.sealed = sealing.reseal(secret.sealed)
            Secret.objects.bulk_update(batch, ["sealed"])
        done += len(batch)
        if len(batch) < BATCH:
            return done
        last = batch[-1].pk
