"""The outcome of one attempt, and the outcomes that no job decides itself."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, cast

from celery import current_app, states
from celery.exceptions import TaskRevokedError, WorkerLostError

from scheduling.models import Run, State
from scheduling.postgres.sql import shortened
from scheduling.registry import attempts_allowed
from scheduling.runs.stored_results import PreparingBackend, StoredResult

TEXT_MAX = 10_000  # characters kept of an error's message


class NextCall(NamedTuple):
    """The next attempt: when it may start, and its call, with texts in JSON.

    It starts at `run_at`, or `delay` from now. Fields of the call that are not given stay as they
    are.
    """

    task: str | None = None
    args: str | None = None
    kwargs: str | None = None
    options: str | None = None
    queue: str | None = None
    priority: int | None = None
    follow_ups: str | None = None
    expires: datetime | timedelta | None = None
    run_at: datetime | None = None
    delay: timedelta = timedelta(0)


UNCHANGED = NextCall()


@dataclass(frozen=True)
class Outcome:
    """The end of one attempt: final, a retry, or a replacement.

    `state` is final, or SCHEDULED for a retry or a replacement. `failed` counts against the run's
    attempts, and sends a retry down one priority step. `error` and `traceback` go into the run's
    errors. If the lease of the attempt no longer ends at `lease`, it has been renewed, and the
    outcome has no effect.
    """

    state: State
    reason: str = ""
    error: str | None = None
    traceback: str = ""
    failed: bool = False
    result: StoredResult | None = None
    lease: datetime | None = None
    added: tuple[str, ...] = ()  # JSON of the signatures that the job adds to its chord
    # Of a final state: the value or the error that follow-ups get, whether the run is known to have
    # follow-ups, and the place of a failure if its traceback cannot show it.
    value: object = None
    followed: bool = False
    place: str = ""
    # Of a retry: its call, and the outcome that ends a run which may retry for ever, after it has
    # been ended from outside too often.
    call: NextCall = UNCHANGED
    last: "Outcome | None" = None
    # Of a replacement: JSON of the signature that goes on in the run's place.
    replacement: str = ""


def backend() -> PreparingBackend:
    return cast("PreparingBackend", current_app.backend)


def text_of(error: object) -> str:
    """Return an error's type and message, shortened; an error in its `__str__` does no harm."""
    try:
        return shortened(f"{type(error).__name__}: {error}", TEXT_MAX)
    except Exception:
        return f"{type(error).__name__} (it cannot say more)"


def failed(text: str, error: BaseException, task: str | None = None) -> Outcome:
    """Return the outcome of a run that has failed, for which Celery stores no result."""
    if not isinstance(error, Exception):  # a reader of the result raises it, and must not exit
        error = WorkerLostError(text)
    result = backend().prepare_error(states.FAILURE, error, task)
    return Outcome(State.FAILED, text, text, failed=True, result=result, value=error)


def failed_attempt(
    task: str,
    max_attempts: int | None,
    failures: int,
    error: BaseException,
    *,
    traceback: str = "",
    counts: bool = True,
    delay: timedelta = timedelta(0),
) -> Outcome:
    """Return the outcome of an attempt that ended with `error` outside the job's own code.

    Another attempt follows at once (or after `delay`), unless this failure was the last allowed.
    `counts=False` uses no attempt up, unless only one is allowed, because the run has started then.
    A job that may retry for ever must not take down workers for ever: `finish` counts these ends.
    """
    text = text_of(error)
    allowed = attempts_allowed(task, max_attempts)
    again = Outcome(
        State.SCHEDULED, text, text, traceback, failed=counts, call=NextCall(delay=delay)
    )
    if not counts and allowed != 1:
        return again
    last = replace(failed(text, error, task), traceback=traceback)
    if allowed is None:
        return replace(again, last=last)
    return last if failures + 1 >= allowed else again


def handed_back(
    task: str, max_attempts: int | None, why: str, delay: timedelta = timedelta(0)
) -> Outcome:
    """Return the outcome of an attempt that its worker hands back, which is not a failure.

    A run with only one attempt must not start twice: it has failed.
    """
    if attempts_allowed(task, max_attempts) == 1:
        text = f"{why}; not tried again, since one attempt is allowed"
        return failed(text, WorkerLostError(text), task)
    return Outcome(State.SCHEDULED, f"handed back: {why}", call=NextCall(delay=delay))


def cancelled(by: str) -> Outcome:
    """Return the outcome of a running attempt that `by` asked to cancel."""
    reason = f"cancelled by {by}"
    result = backend().prepare_error(states.REVOKED, TaskRevokedError(reason))
    return Outcome(State.CANCELLED, reason, result=result)


def errors_of(run: Run) -> list[dict[str, Any]]:
    """Return a run's failed attempts for people; raw SQL can have written any JSON there.

    `started_at` and `ended_at` are instants, or None.
    """
    written = run.errors if isinstance(run.errors, list) else [run.errors] if run.errors else []
    errors = [each if isinstance(each, dict) else {"error": str(each)} for each in written]
    times = ("started_at", "ended_at")
    return [{**error, **{name: _instant(error.get(name)) for name in times}} for error in errors]


def _instant(text: object) -> datetime | None:
    try:
        at = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)
