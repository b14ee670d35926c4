"""The daily digest: recurring failures, and schedules that they keep from running.

ALERTS_TO receive the whole digest, and each owner the part about their schedules. An empty digest
is not sent.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Count, F, Q

from scheduling import clock, shapes
from scheduling.failures import alerts
from scheduling.failures.alerts import Message, iso
from scheduling.failures.streaks import BY
from scheduling.logs import event
from scheduling.models import FailureGroup, Plan, Policy, Run, State
from scheduling.outgoing import addresses
from scheduling.schedules import paused

logger = logging.getLogger(__name__)

DAY = timedelta(days=1)
ROWS_MAX = 1000  # of each kind that are read
LISTED = 50  # of each kind in one digest; the others are counted

# The runs that are worth a line.
WRONG = Q(state__in=[State.FAILED, State.EXPIRED]) | Q(late_by__isnull=False)

Entry = dict[str, Any]


@dataclass(frozen=True)
class Digest:
    """The contents of one digest; the entries are as in the message."""

    failures: list[Entry] = field(default_factory=list)
    paused: list[Entry] = field(default_factory=list)
    quarantined: list[Entry] = field(default_factory=list)
    runs: list[Entry] = field(default_factory=list)

    @property
    def worth_sending(self) -> bool:
        """Whether it has more than schedules that users paused themselves."""
        by_itself = any(entry["by"] == BY for entry in self.paused)
        return bool(self.failures or self.quarantined or self.runs or by_itself)

    def of(self, names: set[str]) -> "Digest":
        """Return the part that is about the schedules of these names."""
        return Digest(
            [entry for entry in self.failures if names & set(entry["schedules"])],
            *([entry for entry in rows if entry["schedule"] in names] for rows in (
                self.paused, self.quarantined, self.runs)),
        )  # fmt: skip


def write() -> int:
    """Write the digests, and a run that sends each; return how many.

    A failure is reported once: the next digest counts from this one.
    """
    with transaction.atomic():
        now = clock.now()
        free = FailureGroup.objects.select_for_update(skip_locked=True, no_key=True)
        groups = list(free.filter(count__gt=F("digest_count")).order_by("-last_seen_at")[:ROWS_MAX])
        digest = Digest([_failure(group) for group in groups], _paused(now), _quarantined(),
                        _wrong(now))  # fmt: skip
        messages = _messages(digest, now)
        for address, message in messages.items():
            alerts.tell(address, message)
        FailureGroup.objects.filter(pk__in=[group.pk for group in groups]).update(
            digest_count=F("count")
        )
        _forget(now)
    event(logger, "digest_written", groups=len(groups), messages=len(messages))
    return len(messages)


def _messages(digest: Digest, now: datetime) -> Mapping[str, Message]:
    """Return the digest of each address: the whole, or the part about an owner's schedules."""
    parts = dict.fromkeys(settings.ALERTS_TO, digest)
    for address, names in _owned(digest).items():
        parts.setdefault(address, digest.of(names))
    return {address: _message(part, now) for address, part in parts.items() if part.worth_sending}


def _owned(digest: Digest) -> dict[str, set[str]]:
    """Return which of the digest's schedules each owner has."""
    names = {name for entry in digest.failures for name in entry["schedules"]}
    for rows in (digest.paused, digest.quarantined, digest.runs):
        names |= {entry["schedule"] for entry in rows}
    owned: dict[str, set[str]] = {}
    policies = Policy.objects.filter(schedule__name__in=names).exclude(owner="")
    for name, owner in policies.values_list("schedule__name", "owner"):
        for address in addresses.split(owner):
            owned.setdefault(address, set()).add(name)
    return owned


# --- Contents -------------------------------------------------------------------------------------


def _failure(group: FailureGroup) -> Entry:
    since = group.count - group.digest_count
    shape = shapes.failure_group(group)
    return {**shape, "since_last_digest": since, "error": shape["error"][: alerts.ERROR_SHOWN]}


def _paused(now: datetime) -> list[Entry]:
    found = Policy.objects.filter(paused(now)).order_by("-paused_at").select_related("schedule")
    return [
        {
            "schedule": policy.schedule.name,
            "since": iso(policy.paused_at) if policy.paused_at else "",
            "by": policy.paused_by,
            "reason": policy.pause_reason,
        }
        for policy in found[:ROWS_MAX]
    ]


def _quarantined() -> list[Entry]:
    found = Plan.objects.exclude(error="").filter(schedule__enabled=True).order_by("pk")
    rows = found.values_list("schedule__name", "error")[:ROWS_MAX]
    return [{"schedule": name, "error": error[: alerts.ERROR_SHOWN]} for name, error in rows]


def _wrong(now: datetime) -> list[Entry]:
    """Return how many runs of each schedule failed, expired or were late in the last day."""
    runs = Run.objects.filter(WRONG, finished_at__gt=now - DAY).exclude(task__in=alerts.OWN_TASKS)
    rows = (
        runs.order_by()
        .values_list("schedule_name")
        .annotate(
            failed=Count("pk", filter=Q(state=State.FAILED)),
            expired=Count("pk", filter=Q(state=State.EXPIRED)),
            late=Count("pk", filter=Q(late_by__isnull=False)),
        )
        .order_by("-failed", "-expired", "-late", "schedule_name")
    )
    names = ("schedule", "failed", "expired", "late")
    return [dict(zip(names, row, strict=True)) for row in rows[:ROWS_MAX]]


def _forget(now: datetime) -> None:
    """Delete the groups that were not seen for as long as failed runs are kept."""
    if settings.KEEP_FAILED:
        FailureGroup.objects.filter(last_seen_at__lt=now - settings.KEEP_FAILED).delete()


# --- In words -------------------------------------------------------------------------------------


def _message(digest: Digest, now: datetime) -> Message:
    total = sum(entry["since_last_digest"] for entry in digest.failures)
    words = [f"{total:,} failures" if total != 1 else "1 failure"] if total else []
    if digest.paused:
        words.append(f"{len(digest.paused):,} paused")
    if digest.quarantined:
        words.append(f"{len(digest.quarantined):,} in quarantine")
    lines = [
        *_section("Failures", digest.failures, _failure_lines),
        *_section("Paused", digest.paused, _paused_lines),
        *_section("In quarantine: not planned until repaired", digest.quarantined, _broken_lines),
        *_section("Runs of the last day", digest.runs, _runs_lines),
    ]
    listed = {name: rows[:LISTED] for name, rows in vars(digest).items()}
    more = {name: len(rows) - LISTED for name, rows in vars(digest).items() if rows[LISTED:]}
    subject = f"Digest: {', '.join(words) or 'runs that expired or were late'}"
    return {**alerts.written("digest", subject, lines, now), **listed, "more": more}


def _section(
    title: str, rows: list[Entry], lines_of: Callable[[Entry], Iterable[str]]
) -> Iterable[str]:
    if rows:
        yield from (title, "-" * len(title))
        for row in rows[:LISTED]:
            yield from lines_of(row)
        if rows[LISTED:]:
            yield f"... and {len(rows) - LISTED:,} more"
        yield ""


def _failure_lines(entry: Entry) -> Iterable[str]:
    count, total = entry["since_last_digest"], entry["count"]
    yield f"{entry['exception']} in {entry['task']}: {count:,} time{'s' if count != 1 else ''}"
    yield f"  {' '.join(entry['error'].split())[:200]}"
    yield f"  {total:,} in all since {entry['first_seen_at']}, last {entry['last_seen_at']}"
    if entry["place"]:
        yield f"  at {entry['place']}"
    if names := entry["schedules"]:
        more = f" and {len(names) - 5} more" if names[5:] else ""
        yield f"  schedules: {', '.join(names[:5])}{more}"


def _paused_lines(entry: Entry) -> Iterable[str]:
    reason = f": {entry['reason']}" if entry["reason"] else ""
    yield f"{entry['schedule']}: since {entry['since']} by {entry['by'] or 'a user'}{reason}"


def _broken_lines(entry: Entry) -> Iterable[str]:
    yield f"{entry['schedule']}: {entry['error']}"


def _runs_lines(entry: Entry) -> Iterable[str]:
    counts = [f"{entry[kind]:,} {kind}" for kind in ("failed", "expired", "late") if entry[kind]]
    yield f"{entry['schedule'] or 'enqueued, without a schedule'}: {', '.join(counts)}"
