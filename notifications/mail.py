"""The reminder as a message."""

from datetime import date
from email.utils import formataddr

from django.core.mail import EmailMultiAlternatives
from django.template.loader import render_to_string

from notifications.models import Delivery, LifecycleId
from scheduling.jobs import PermanentError
from scheduling.outgoing.mail import address_problem, mailable, own_domain


def reminder(delivery: Delivery, record: LifecycleId, today: date) -> EmailMultiAlternatives:
    """Return the message of `delivery`, with the days that are left `today`.

    Raises:
        PermanentError: the record's e-mail address cannot be mailed.
    """
    if problem := address_problem(record.requester_email):
        raise PermanentError(f"the requester's e-mail {record.requester_email!r} {problem}.")
    recipient = mailable(record.requester_email)
    days = (record.expires_on - today).days
    context = {"record": record, "days": days, "ago": -days}
    subject = render_to_string("notifications/reminder_subject.txt", context)
    message = EmailMultiAlternatives(
        subject=" ".join(subject.split()),
        body=render_to_string("notifications/reminder.txt", context),
        to=[formataddr((" ".join(record.requester_name.split()), recipient))],
        headers={
            "Message-ID": message_id(delivery),
            # RFC 3834: asks for no automatic answer, such as an out-of-office note.
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
    return f"<delivery-{delivery.pk}@{made}.{own_domain()}>"
