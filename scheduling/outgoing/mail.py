"""Sending one message by mail, and which refusals of a mail server are for good."""

import smtplib
from email.utils import parseaddr

from django.conf import settings
from django.core.mail import EmailMessage

from scheduling.errors import PermanentError

# "Authentication required" answers a sender too, but speaks of our login, which can be mended.
NOT_OF_THIS_MAIL = {530}


def own_domain() -> str:
    """Return the domain that this installation's Message-IDs end with."""
    return parseaddr(settings.DEFAULT_FROM_EMAIL)[1].rpartition("@")[2] or "localhost"


def send(message: EmailMessage) -> None:
    """Send it.

    Raises:
        PermanentError: the server, or the format of mail, refuses this message or its recipient.
        OSError: whatever may pass: no connection, a time-out, a 4xx answer, a refused login.
    """
    try:
        message.message()
    except ValueError as error:
        raise PermanentError(f"the message cannot be written: {error}") from error
    try:
        message.send()
    except smtplib.SMTPException as error:
        if reason := _permanent_reason(error):
            raise PermanentError(reason) from error
        raise


def _permanent_reason(error: smtplib.SMTPException) -> str:
    """Return the server's words if it refuses for good (RFC 5321, 4.2.1: 5yz), "" otherwise."""
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return str(error)
    answers: list[tuple[str, int, bytes | str]]
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        answers = [(parseaddr(address)[1], *answer) for address, answer in error.recipients.items()]
    elif isinstance(error, smtplib.SMTPSenderRefused):
        answers = [(f"sender {error.sender}", error.smtp_code, error.smtp_error)]
    elif isinstance(error, smtplib.SMTPDataError):
        answers = [("message", error.smtp_code, error.smtp_error)]
    else:
        return ""
    if any(code < 500 or code in NOT_OF_THIS_MAIL for _, code, _ in answers):
        return ""
    return "; ".join(f"{what} refused: {code} {_text(words)}" for what, code, words in answers)


def _text(words: bytes | str) -> str:
    return words.decode(errors="replace") if isinstance(words, bytes) else words
