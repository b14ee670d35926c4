from io import StringIO

import pytest
from django.contrib.auth import authenticate, get_user_model
from django.core.management import call_command
from django_celery_beat.models import PeriodicTask

from notifications.models import Delivery, LifecycleId, Reminder
from notifications.tasks import sweep
from scheduling.models import Run

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sixty_days")]


def load_demo() -> str:
    out = StringIO()
    call_command("demo", stdout=out)
    return out.getvalue()


def test_it_loads_something_to_look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMO_ADMIN_PASSWORD", "for-the-demo")
    said = load_demo()
    assert "Made the superuser `admin`" in said
    assert "8 expire within 60 days" in said
    assert list(Reminder.objects.values_list("days_before", flat=True)) == [60, 30, 7]
    schedule = PeriodicTask.objects.get(name__startswith="demo: ")
    assert schedule.task == Run.objects.get().task == "notifications.tasks.sweep"
    assert (schedule.interval.every, schedule.interval.period) == (1, "minutes")
    user = authenticate(username="admin", password="for-the-demo")
    assert user is not None
    assert user.is_superuser

    records = LifecycleId.objects.count()
    LifecycleId.objects.first().delete()  # type: ignore[union-attr]
    assert load_demo() == "The demo data is there already.\n"
    assert (LifecycleId.objects.count(), Run.objects.count()) == (records - 1, 1)


def test_its_first_sweep_finds_eight() -> None:
    load_demo()
    assert (sweep()["due"], sweep()["to_send"]) == (8, 0)
    assert Delivery.objects.in_state("pending").count() == 8


def test_without_a_password_it_makes_no_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEMO_ADMIN_PASSWORD", raising=False)
    assert "set DEMO_ADMIN_PASSWORD" in load_demo()
    assert not get_user_model().objects.exists()
