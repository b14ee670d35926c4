"""A real SMTP server, whose answers a test chooses."""

from collections.abc import Callable
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any


class MailServer:
    """Keeps accepted messages. `on_recipient` and `on_data` are its answers, by default yes."""

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
