"""The reminder as a message, and which refusals of a mail server are for good."""

import smtplib
from datetime import date
from email.utils import formataddr, parseaddr

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.mail import EmailMultiAlternatives
from django.core.validators import validate_email
from django.template.loader import render_to_string

from notifications.models import Delivery, LifecycleId
from scheduling.jobs import PermanentError

# "Authentication required" answers a sender too, but speaks of our login, which can be mended.
NOT_OF_THIS_MAIL = {530}


def reminder(delivery: Delivery, record: LifecycleId, today: date) -> EmailMultiAlternatives:
    """Return the message of `delivery`, with the days that are left `today`.

    Raises:
        PermanentError: the record's e-mail address is none.
    """
    recipient = record.requester_email
    try:
        validate_email(recipient)
    except ValidationError:
        raise PermanentError(f"{recipient!r} is not an e-mail address.") from None
    days = (record.expires_on - today).days
    context = {"record": record, "days": days, "ago": -days}
    subject = render_to_string("notifications/reminder_subject.txt", context)
    message = EmailMultiAlternatives(
        subject=" ".join(subject.split()),
        body=render_to_string("notifications/reminder.txt", context),
        to=[formataddr((" ".join(record.requester_name.split()), recipient))],
        headers={
            "Message-ID": message_id(delivery),
            # RFC 3834: nobody's out-of-office note shall answer.
            "Auto-Submitted": "auto-generated",
        },
    )
    message.attach_alternative(
        render_to_string("notifications/reminder.html", context), "text/html"
    )
    return message


def message_id(delivery: Delivery) -> str:
    """Return the delivery's Message-ID: the same for each attempt, and of no other installation.

    Mailboxes drop a second message with an id they know, which makes a repeated sending harmless.
    """
    made = int(delivery.created_at.timestamp() * 1_000_000)
    domain = parseaddr(settings.DEFAULT_FROM_EMAIL)[1].rpartition("@")[2] or "localhost"
    return f"<delivery-{delivery.pk}@{made}.{domain}>"


def send(message: EmailMultiAlternatives) -> None:
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
