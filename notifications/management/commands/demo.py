"""`manage.py demo`: something to look at on a new installation; loaded once."""

import os
from datetime import timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand
from django.db import transaction
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from notifications.dates import today
from notifications.models import LifecycleId, Reminder, Status
from notifications.tasks import sweep
from scheduling.jobs import enqueue

SCHEDULE = "demo: look for expiring records every minute"
LEAD_TIMES = (60, 30, 7)

SYSTEMS = (
    "Case tracking", "Grants portal", "Payroll interface", "Benefits calculator", "Visitor log",
    "Travel booking", "Asset register", "Permit applications", "Records archive", "Help desk",
    "Inspection reports", "Public comments",
)  # fmt: skip

# Days from the day of loading until each system's parts expire.
EXPIRING = (0, 3, 7, 14, 29, 30, 45, 60)
FAR = tuple(range(61, 1100, 47))
EXPIRED = tuple(range(-900, 0, 90))
RETIRED = (5, 20, 50, 400)


class Command(BaseCommand):
    help = (
        "Load demo data once: lifecycle ids, lead times, a schedule, and, with DEMO_ADMIN_PASSWORD "
        "in the environment, the superuser `admin`."
    )

    def handle(self, **_: Any) -> None:
        with transaction.atomic():
            self._make_admin()
            if PeriodicTask.objects.filter(name=SCHEDULE).exists():
                self.stdout.write("The demo data is there already.")
            else:
                self._load()

    def _make_admin(self) -> None:
        users = get_user_model().objects
        password = os.environ.get("DEMO_ADMIN_PASSWORD", "")
        if users.filter(username="admin").exists():
            return
        if not password:
            self.stdout.write("No user made: set DEMO_ADMIN_PASSWORD for a superuser `admin`.")
            return
        users.create_superuser("admin", "admin@example.org", password)
        self.stdout.write("Made the superuser `admin`, with the password of DEMO_ADMIN_PASSWORD.")

    def _load(self) -> None:
        made = LifecycleId.objects.bulk_create(_records(), ignore_conflicts=True)
        for days in LEAD_TIMES:
            Reminder.objects.get_or_create(days_before=days)
        every_minute, _ = IntervalSchedule.objects.get_or_create(
            every=1, period=IntervalSchedule.MINUTES
        )
        PeriodicTask.objects.create(name=SCHEDULE, task=sweep.name, interval=every_minute)
        run = enqueue(sweep, enqueued_by="demo")
        self.stdout.write(
            f"Made {len(made)} lifecycle ids ({len(EXPIRING)} expire within 60 days), the lead "
            f"times {', '.join(map(str, LEAD_TIMES))}, and the schedule '{SCHEDULE}'; "
            f"the first sweep is run {run.id}."
        )


def _records() -> list[LifecycleId]:
    now = today()
    plan = [
        *((days, Status.ACTIVE) for days in (*EXPIRING, *FAR, *EXPIRED)),
        *((days, Status.RETIRED) for days in RETIRED),
    ]
    return [
        LifecycleId(
            lcid=f"DEMO-{number:03}",
            name=f"{SYSTEMS[number % len(SYSTEMS)]} {1 + number // len(SYSTEMS)}.0",
            issued_on=now + timedelta(days=days - 3 * 365),
            expires_on=now + timedelta(days=days),
            requester_name=f"Requester {number}",
            requester_email=f"requester-{number}@example.org",
            status=status,
        )
        for number, (days, status) in enumerate(plan, start=1)
    ]
