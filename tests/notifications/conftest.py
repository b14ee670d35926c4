"""Shared fixtures of the tests of reminders."""

import pytest

from notifications.models import Reminder


@pytest.fixture
def sixty_days(db: None) -> Reminder:
    """The lead time that migrations make (and that a flushed test database has lost)."""
    return Reminder.objects.get_or_create(days_before=60)[0]
