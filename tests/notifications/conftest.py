"""A real SMTP server, whose answers a test chooses."""

from collections.abc import Callable, Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from pytest_django import Settings

from notifications.models import Reminder


class MailServer:
    """Keeps what it accepts. `on_recipient` and `on_data` are its answers, by default yes."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.accepted: list[EmailMessage] = []
        self.recipients: list[str] = []
        self.on_sender = self.on_recipient = self.on_data = "250 OK"
        self.before_answer: Callable[[], object] = lambda: None

    async def handle_MAIL(
        self, server: Any, session: Any, envelope: Any, address: str, options: Any
    ) -> str:
        envelope.mail_from = address
        return self.on_sender

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: Any
    ) -> str:
        envelope.rcpt_tos.append(address)
        return self.on_recipient

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if self.on_data.startswith("250"):
            message = message_from_bytes(envelope.content, policy=policy.default)
            assert isinstance(message, EmailMessage)
            self.accepted.append(message)
            self.recipients += envelope.rcpt_tos
        self.before_answer()
        return self.on_data


@pytest.fixture
def mail_settings(settings: Settings, free_port: int) -> int:
    """Send mail by SMTP to a port where, so far, nobody listens."""
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", free_port
    settings.EMAIL_HOST_USER = settings.EMAIL_HOST_PASSWORD = ""
    settings.EMAIL_TIMEOUT = 5
    return free_port


@pytest.fixture
def mail_server(mail_settings: int) -> Iterator[MailServer]:
    server = MailServer(mail_settings)
    controller = Controller(server, hostname="127.0.0.1", port=mail_settings)
    controller.start()
    try:
        yield server
    finally:
        controller.stop()


@pytest.fixture
def sixty_days(db: None) -> Reminder:
    """The lead time that migrations make (and that a flushed test database has lost)."""
    return Reminder.objects.get_or_create(days_before=60)[0]
