"""What the tests of reminders share."""

import pytest
from pytest_django import Settings

from notifications.models import Reminder
from scheduling import clock


@pytest.fixture
def sixty_days(db: None) -> Reminder:
    """The lead time that migrations make (and that a flushed test database has lost)."""
    return Reminder.objects.get_or_create(days_before=60)[0]


@pytest.fixture
def noon(db: None, settings: Settings) -> None:
    """Set TIME_ZONE to where it is about noon: today does not end while the test runs."""
    settings.TIME_ZONE = f"Etc/GMT{clock.now().hour - 12:+d}"
