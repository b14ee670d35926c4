"""Sends a trigger for a run: limits its rate, keeps the attempt, and judges the answer."""

import time
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from django.core.exceptions import ValidationError
from django.db.models import Q

from scheduling import clock
from scheduling.ids import uuid7
from scheduling.jobs import CurrentRun, PermanentError
from scheduling.models import Run
from scheduling.outgoing import http
from scheduling.outgoing.http import Answer
from triggers import messages, pace, streaks
from triggers.definitions import Definition, Kind
from triggers.models import SIGNING, Attempt, Trigger
from triggers.placeholders import PlaceholderError, as_text
from triggers.requests import MASK, Facts, Request, build

KEPT = 4096  # bytes of an answer
GONE = 410
PASSING = {408, 425, 429}  # and all from 500
LONGEST_WAIT = 3600.0  # seconds that a Retry-After may ask for


class NotYetError(Exception):
    """The rate limit does not let the trigger be sent for more than a second."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the rate limit allows it in {seconds:.0f} s")
        self.seconds = seconds


class AskedToWaitError(OSError):
    """The receiver said when to try again."""

    def __init__(self, problem: str, seconds: float) -> None:
        super().__init__(problem)
        self.seconds = seconds


class Tried(NamedTuple):
    """A request that was sent as a test, with its secrets masked, and the attempt."""

    request: Request
    attempt: Attempt


def fire(name: str, args: Mapping[str, Any], run: CurrentRun | None) -> dict[str, Any]:
    """Send a trigger once; return the status and the milliseconds.

    Raises:
        NotYetError: it is not its turn; nothing was sent.
        PermanentError: it cannot be sent, or the receiver refused it for good.
        OSError: the attempt failed in a way that may pass; AskedToWaitError says when.
    """
    trigger = Trigger.objects.select_related("template").filter(name=name).first()
    if trigger is None:
        raise PermanentError(f"the trigger {name!r} does not exist: `trigger list` shows them.")
    now = clock.now()
    attempt = Attempt(
        trigger=trigger, run_id=run.id if run else uuid7(), number=run.attempt if run else 1
    )
    secrets: tuple[str, ...] = ()
    try:
        if not trigger.enabled:
            raise PermanentError(f"the trigger {name} is disabled. {trigger.disabled_reason}")
        definition = trigger.definition()
        facts = _facts(definition, args, run, attempt, now)
        named, signing = _secrets(trigger, now)
        secrets = (*named.values(), *signing)
        request = build(definition, facts, named, signing, now)
        _wait_for_turn(trigger)
        wait = _send(request, attempt, secrets)
    except NotYetError:
        raise
    except (PlaceholderError, ValidationError, PermanentError) as error:
        text = "; ".join(error.messages) if isinstance(error, ValidationError) else str(error)
        attempt.error = _masked(text, secrets)
        attempt.save(force_insert=True)
        raise PermanentError(attempt.error) from None
    attempt.save(force_insert=True)
    return _judge(trigger, attempt, wait, now)


def preview(trigger: Trigger, args: Mapping[str, Any]) -> Request:
    """Return the request that would be sent now, with its secrets masked.

    A parameter that is not in `args` is shown as its name.

    Raises:
        PlaceholderError, ValidationError: the trigger cannot be filled in.
    """
    return _masked_request(trigger, _example(trigger, args), clock.now())


def send_test(trigger: Trigger, args: Mapping[str, Any]) -> Tried:
    """Send a trigger now, marked as a test, whether it is enabled or not; keep the attempt.

    Raises:
        PermanentError: it cannot be sent.
        PlaceholderError, ValidationError: the trigger cannot be filled in.
    """
    now = clock.now()
    facts = _example(trigger, args)
    named, signing = _secrets(trigger, now)
    request = build(trigger.definition(), facts, named, signing, now)
    attempt = Attempt(trigger=trigger)
    _send(request, attempt, (*named.values(), *signing))
    attempt.save(force_insert=True)
    return Tried(_masked_request(trigger, facts, now), attempt)


# --- Facts and secrets ----------------------------------------------------------------------------


def _facts(
    definition: Definition,
    args: Mapping[str, Any],
    run: CurrentRun | None,
    attempt: Attempt,
    now: datetime,
) -> Facts:
    due = run.due_at if run else now
    run_at = due
    if run and "run_at" in definition.placeholders():
        run_at = Run.objects.values_list("run_at", flat=True).get(pk=run.id)
    run_id, schedule = str(attempt.run_id), (run.schedule if run else None)
    values = {
        "run_id": run_id,
        "schedule": schedule,
        "due_at": _written(due),
        "due_local": clock.local(due).isoformat(),
        "run_at": _written(run_at),
        "attempt": attempt.number,
        "now": _written(now),
        **{f"args.{name}": value for name, value in args.items()},
    }
    return Facts(values, run_id, schedule or "", _written(due), attempt.number)


def _example(trigger: Trigger, args: Mapping[str, Any]) -> Facts:
    definition, now = trigger.definition(), clock.now()
    shown = {
        name.removeprefix("args."): f"<{name.removeprefix('args.')}>"
        for name in definition.placeholders()
        if name.startswith("args.")
    }
    attempt = Attempt(trigger=trigger, run_id=uuid7())
    facts = _facts(definition, {**shown, **args}, None, attempt, now)
    return facts._replace(is_test=True)


def _written(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def _secrets(trigger: Trigger, now: datetime) -> tuple[dict[str, str], list[str]]:
    """Return the secrets for placeholders, by name, and the signing secrets, the newest first."""
    named, signing = dict[str, str](), list[str]()
    valid = trigger.secrets.filter(Q(ends_at__isnull=True) | Q(ends_at__gt=now))
    for secret in valid.order_by("-id"):
        if secret.name == SIGNING:
            signing.append(secret.unseal())
        else:
            named[secret.name] = secret.unseal()
    return named, signing


def _masked_request(trigger: Trigger, facts: Facts, now: datetime) -> Request:
    names = list(trigger.secrets.values_list("name", flat=True))
    named = {name: MASK for name in names if name != SIGNING}
    return build(trigger.definition(), facts, named, [MASK] * names.count(SIGNING), now)


def _masked(text: str, secrets: tuple[str, ...]) -> str:
    for secret in secrets:
        if secret:
            text = text.replace(secret, MASK)
    return text


# --- Sending --------------------------------------------------------------------------------------


def _wait_for_turn(trigger: Trigger) -> None:
    if trigger.per_minute is None:
        return
    may_send, seconds = pace.take_turn(trigger.pk)
    if not may_send:
        raise NotYetError(seconds)
    time.sleep(seconds)


def _send(request: Request, attempt: Attempt, secrets: tuple[str, ...]) -> float | None:
    """Send the request, and write the answer into `attempt`.

    Returns:
        The seconds that the receiver asks to wait before the next attempt, if it does.
    """
    begun, answer = time.monotonic(), None
    try:
        if request.definition.kind == Kind.MESSAGE:
            attempt.address = messages.send(request)
        else:
            answer = http.request(
                str(request.definition.method), request.url, headers=request.headers,
                body=request.body,
            )  # fmt: skip
    except OSError as error:
        attempt.error = _masked(str(error) or type(error).__name__, secrets)
    attempt.milliseconds = round((time.monotonic() - begun) * 1000)
    if answer is None:
        return None
    attempt.status, attempt.address = answer.status, answer.address
    content = answer.body[:KEPT]
    for secret in filter(None, secrets):
        content = content.replace(secret.encode(), MASK.encode())
    attempt.answer = content
    attempt.error = _problem(request, answer)
    return _retry_after(answer)


def _problem(request: Request, answer: Answer) -> str:
    if 200 <= answer.status < 300:
        return ""
    redirected = ": redirects are not followed" if 300 <= answer.status < 400 else ""
    host = request.url.split("/")[2]
    return f"{host} answered {answer.status}{redirected}"


def _judge(trigger: Trigger, attempt: Attempt, wait: float | None, now: datetime) -> dict[str, Any]:
    """Return the result of a sent attempt, or raise the error that decides about the run."""
    status = attempt.status
    if not attempt.error:
        streaks.note_success(trigger.pk)
        return {"status": status, "milliseconds": attempt.milliseconds}
    if status == GONE:
        streaks.disable(trigger.pk, attempt.error)
        raise PermanentError(f"{attempt.error}: the trigger is disabled now.")
    streaks.note_failure(trigger.pk, attempt.error, now)
    if status is None or status in PASSING or status >= 500:
        if wait is None:
            raise OSError(attempt.error)
        raise AskedToWaitError(attempt.error, wait)
    raise PermanentError(f"{attempt.error}.")


def _retry_after(answer: Answer) -> float | None:
    """Return the seconds that the receiver asks to wait, up to an hour; None if it asks nothing."""
    asked = answer.headers.get("Retry-After", "").strip()
    if asked.isascii() and asked.isdigit():
        seconds = float(asked[:10])
    else:
        try:
            until = parsedate_to_datetime(asked)
            # A server's clock may be wrong: its own Date counts if it sends one.
            sent = answer.headers.get("Date")
            since = parsedate_to_datetime(sent) if sent else clock.now()
            seconds = (until - since).total_seconds()
        except (TypeError, ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), LONGEST_WAIT)


def shown(request: Request) -> list[str]:
    """Return a masked request as lines, as they would stand on the wire."""
    definition = request.definition
    if definition.kind == Kind.MESSAGE:
        where = f"exchange={request.exchange!r} routing_key={request.routing_key!r}"
        first = [f"{request.url} {where}"]
        first += [f"{name}={as_text(value)}" for name, value in request.properties.items()]
    else:
        first = [f"{definition.method} {request.url}"]
    headers = [f"{name}: {value}" for name, value in request.headers.items()]
    return [*first, *headers, "", (request.body or b"").decode()]
