"""Reports failures to owners: the recipients of messages, their words, and their sending.

The transaction that takes the news of failure groups also writes the messages, and for each address
a run that sends one. So each message is sent, and a failing mail server delays no other address. A
failure of these runs is never reported.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.mail import EmailMessage
from django.db import transaction
from django.db.models import F, Max

from scheduling import clock, shapes
from scheduling.errors import PermanentError
from scheduling.ids import uuid7
from scheduling.logs import event
from scheduling.models import Failure, FailureGroup, News, Policy, Priority, Run
from scheduling.outgoing import addresses, mail, webhooks
from scheduling.runs.enqueueing import enqueue

if TYPE_CHECKING:
    from scheduling.failures.streaks import Paused

logger = logging.getLogger(__name__)

Message = dict[str, Any]

VERSION = 1  # of the message's form
MAX_ATTEMPTS = 10
ALERT, TELL, DIGEST = (f"scheduling.tasks.{name}" for name in ("alert", "tell", "digest"))
OWN_TASKS = {ALERT, TELL, DIGEST}
KEY = ALERT  # unique key of the run that will write the messages
GATHER = timedelta(seconds=2)  # so that one message reports failures that happen together
GROUPS_TOLD = 1000  # in one run
LISTED = 20  # in one message; the others are counted
ERROR_SHOWN = 500  # characters

WORDS = {
    News.NEW: "new",
    News.BACK: "back again",
    News.IN_ROW: "fails one after the other",
}


def _news(group: FailureGroup) -> str:
    """Return the reason of the message in words; raw SQL can have written another word."""
    return WORDS.get(News(group.news), "") if group.news in News.values else group.news


# --- Recipients -----------------------------------------------------------------------------------


def has_owners(failures: Iterable[Failure]) -> bool:
    """Return whether any address is to receive a message about these failures."""
    if settings.ALERTS_TO:
        return True
    ids = {failure.schedule_id for failure in failures if failure.schedule_id is not None}
    return bool(ids) and Policy.objects.filter(pk__in=ids).exclude(owner="").exists()


def addresses_of(policy: Policy) -> list[str]:
    return addresses.split(policy.owner) or list(settings.ALERTS_TO)


def owners_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the addresses for each name of a schedule; "" stands for runs without a schedule."""
    wanted = set(names)
    owned = Policy.objects.filter(schedule__name__in=wanted - {""}).exclude(owner="")
    found = {
        name: addresses.split(text) for name, text in owned.values_list("schedule__name", "owner")
    }
    return {name: found.get(name) or list(settings.ALERTS_TO) for name in wanted}


# --- News -----------------------------------------------------------------------------------------


def call() -> Run:
    """Enqueue the run that writes the messages, unless one waits; at most one per ALERT_PACE."""
    last = FailureGroup.objects.aggregate(at=Max("told_at"))["at"]
    now = clock.now()
    at = max(now + GATHER, last + settings.ALERT_PACE) if last else now + GATHER
    return enqueue(ALERT, at=at, unique_key=KEY, priority=Priority.HIGH)


def write_messages() -> int:
    """Take the news, and make a message and a run that sends it for each address.

    Returns:
        The number of messages.
    """
    with transaction.atomic():
        free = FailureGroup.objects.select_for_update(skip_locked=True, no_key=True)
        groups = list(free.exclude(news="").order_by("last_seen_at")[:GROUPS_TOLD])
        now = clock.now()
        owners = owners_of(name for group in groups for name in group.untold)
        theirs: dict[str, list[FailureGroup]] = defaultdict(list)
        for group in groups:
            for address in dict.fromkeys(a for name in group.untold for a in owners[name]):
                theirs[address].append(group)
        for address, found in theirs.items():
            tell(address, of_failures(found, now))
        FailureGroup.objects.filter(pk__in=[group.pk for group in groups]).update(
            news="", untold=[], told_at=now, told_count=F("count")
        )
    event(logger, "alerts_written", groups=len(groups), messages=len(theirs))
    return len(theirs)


def report_pause(paused: "Paused") -> None:
    """Make the messages that say that a schedule was paused; in the caller's transaction."""
    for address in addresses_of(paused.policy):
        tell(address, of_pause(paused, clock.now()))


def tell(address: str, message: Message) -> Run:
    """Write the run that sends a message to one address."""
    return enqueue(TELL, (address, message), priority=Priority.HIGH)


# --- Messages -------------------------------------------------------------------------------------


def of_failures(groups: Sequence[FailureGroup], now: datetime) -> Message:
    """Return the message about groups of failures that are news, the newest first."""
    groups = sorted(groups, key=lambda group: group.last_seen_at, reverse=True)
    first, others = groups[0], len(groups) - 1
    subject = f"{first.exception} in {first.task} ({_news(first)})"
    if others:
        subject += f" and {others} more"
    shown = groups[:LISTED]
    lines = [line for group in shown for line in _lines_of(group)]
    if hidden := len(groups) - len(shown):
        lines += [f"... and {hidden} more kinds of failures."]
    return {
        **written("failures", subject, lines, now),
        "failures": [group_shape(group) for group in shown],
        "more": hidden,
    }


def of_pause(paused: "Paused", now: datetime) -> Message:
    """Return the message about a schedule that was paused for its failures."""
    name, failure = paused.policy.schedule.name, paused.failure
    lines = [
        f"The schedule {name!r} is paused: {paused.reason}",
        "",
        f"The last run: manage.py run show {failure.run_id}",
        f"To go on:     manage.py schedule resume {name!r}",
    ]
    return {
        **written("paused", f"{name} is paused", lines, now),
        "schedule": name,
        "task": failure.task,
        "reason": paused.reason,
        "error": failure.error[:ERROR_SHOWN],
        "run": str(failure.run_id),
    }


def group_shape(group: FailureGroup) -> dict[str, Any]:
    """Return a failure group with its news; `schedules` are those with failures since then."""
    return shapes.failure_group(group) | {
        "news": group.news,
        "since_last_told": group.count - group.told_count,
        "error": group.last_error[:ERROR_SHOWN],
        "schedules": [name for name in group.untold if name],
    }


def iso(at: datetime) -> str | None:
    """Return an instant to the second, as a message's text has it."""
    return shapes.instant(at.replace(microsecond=0))


def written(kind: str, subject: str, lines: Sequence[str], now: datetime) -> Message:
    """Return the fields that every message has."""
    return {
        "version": VERSION,
        "event": kind,
        "at": iso(now),
        "subject": " ".join(subject.split())[:200],
        "text": "\n".join(lines),
    }


def _lines_of(group: FailureGroup) -> list[str]:
    since = group.count - group.told_count
    names = [name for name in group.untold if name]
    lines = [
        f"{group.exception} in {group.task}: {_news(group)}",
        f"  {group.last_error[:ERROR_SHOWN]}",
        f"  where:     {group.place or 'unknown'}",
        f"  how often: {since} since the last message, {group.count} in all",
        f"  since:     {iso(group.first_seen_at)}",
        f"  last run:  manage.py run show {group.last_run_id}",
    ]
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        lines += [f"  schedules: {', '.join(names[:5])}{more}"]
    return [*lines, ""]


# --- Sending --------------------------------------------------------------------------------------


def send(address: str, message: Message, run_id: UUID | None) -> str:
    """Send a message; its id is the run's, the same for each attempt.

    Raises:
        PermanentError: the message can never be sent.
        OSError: the message could not be sent this time.
    """
    sent_id = run_id or uuid7()
    if addresses.is_url(address):
        body = json.dumps({"id": str(sent_id), **message}).encode()
        status = webhooks.post(address, body, {"Idempotency-Key": str(sent_id)})
        return f"answered {status}"
    mail.send(_mail(address, message, sent_id))
    return "sent"


def _mail(address: str, message: Message, sent_id: UUID) -> EmailMessage:
    try:
        addresses.validate(address)
    except ValidationError as error:
        raise PermanentError("; ".join(error.messages)) from None
    return EmailMessage(
        subject=f"[Truebeat] {message['subject']}",
        body=f"{message['text']}\n",
        to=[address],
        headers={
            "Message-ID": f"<alert-{sent_id}@{mail.own_domain()}>",
            "Auto-Submitted": "auto-generated",
        },
    )
