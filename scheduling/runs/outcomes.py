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

TEXT_MAX = 10_000  # characters kept of what an error says


class NextCall(NamedTuple):
    """What the next attempt has in place of this one's, texts in JSON; None: the same."""

    task: str | None = None
    args: str | None = None
    kwargs: str | None = None
    options: str | None = None
    queue: str | None = None
    priority: int | None = None
    follow_ups: str | None = None
    expires: datetime | timedelta | None = None


UNCHANGED = NextCall()


@dataclass(frozen=True)
class Outcome:
    """What became of one attempt.

    `state` is final, or SCHEDULED for another attempt: at `run_at`, or `delay` from now. `error`
    and `traceback` go into the run's errors; `failed` counts against its attempts; `lower` sends it
    down one priority step. `call` is what the next attempt runs. `lease` is when a lost lease ends:
    if it ends at another time now, it has been renewed, and the outcome does not hold. `value` is
    what the job returned, or the error it ended with: what its follow-ups are told. `replacement`
    is the JSON of the signature that goes on in its place, `added` are those of what the job adds
    to its chord. `place` is where it failed, if no traceback can tell. `last` takes its place where
    the run, which may retry for ever, has met with too many such blows.
    """

    state: State
    reason: str = ""
    error: str | None = None
    traceback: str = ""
    failed: bool = False
    lower: bool = False
    run_at: datetime | None = None
    delay: timedelta = timedelta(0)
    call: NextCall = UNCHANGED
    result: StoredResult | None = None
    lease: datetime | None = None
    value: object = None
    replacement: str = ""
    added: tuple[str, ...] = ()
    followed: bool = False  # the run is known to have follow-ups
    place: str = ""
    last: "Outcome | None" = None


def backend() -> PreparingBackend:
    return cast("PreparingBackend", current_app.backend)


def text_of(error: object) -> str:
    """Return what an error is and says, whatever its own __str__ does, and however much."""
    try:
        return shortened(f"{type(error).__name__}: {error}", TEXT_MAX)
    except Exception:
        return f"{type(error).__name__} (it cannot say more)"


def failed(text: str, error: BaseException, task: str | None = None) -> Outcome:
    """Return the outcome of a run that has failed, for which Celery stores no result."""
    if not isinstance(error, Exception):  # whoever asks for the result must not exit
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

    Another attempt follows at once (or after `delay`), unless this failure was the last allowed;
    `counts=False` uses none up, but where one is all: a run that may start once has started. Where
    the job may retry for ever, that is not for ever taking its workers down: `finish` counts.
    """
    text = text_of(error)
    allowed = attempts_allowed(task, max_attempts)
    again = Outcome(
        State.SCHEDULED, text, text, traceback, failed=counts, lower=counts, delay=delay
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
    """Return the outcome of an attempt that its worker gave up, which counts as no failure.

    A run that may fail only once must not start twice: it has failed.
    """
    if attempts_allowed(task, max_attempts) == 1:
        text = f"{why}; not tried again, since one attempt is allowed"
        return failed(text, WorkerLostError(text), task)
    return Outcome(State.SCHEDULED, f"handed back: {why}", delay=delay)


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
