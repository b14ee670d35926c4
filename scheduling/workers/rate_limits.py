"""Celery's `rate_limit` for hints: a run that must wait goes back to the ledger.

Celery keeps such messages in the worker, in the places of others. Here a run whose turn comes
within AHEAD seconds waits without a place. A run that must wait longer becomes scheduled again, at
the same attempt, for the time of its turn. Each gets a turn of its own, so that its hint is sent
once more and not repeatedly.
"""

import time
from typing import Any, NamedTuple

from celery import bootsteps
from celery.worker import state as worker_state

from scheduling.broker.signing import ATTEMPT
from scheduling.celery_internals import replace_limiter, start_limited
from scheduling.worker_process import process_of

AHEAD = 1.0  # seconds before its turn that a run is kept here, at most
EARLY = AHEAD / 2  # and so long before its turn it is sent again
# A run is put off by so many turns or seconds at most: others may be cancelled meanwhile.
FARTHEST, FAR = 60, 60.0


class Turn(NamedTuple):
    """The time of a task's next turn: for a run kept here, and for a run put back."""

    here: float
    back: float


class Turns:
    """Gives out the turns of each task, one every `interval` seconds; in this worker alone."""

    def __init__(self) -> None:
        self._next: dict[str, Turn] = {}

    def take(self, task: str, interval: float, now: float) -> tuple[float, bool]:
        """Return in how many seconds the turn is, and whether it is taken, or the run put back."""
        here, back = self._next.get(task, Turn(now, now))
        if now - here > interval:
            back = now  # a turn passed unused: no run waits, as far as known
        here = max(here, now)
        if here - now <= AHEAD:
            self._next[task] = Turn(here + interval, max(back, here + interval))
            return here - now, True
        back = min(max(back, here), now + max(FARTHEST * interval, FAR))
        self._next[task] = Turn(here, back + interval)
        return back - now, False


class RateLimits(bootsteps.StartStopStep):
    """Takes the place of the consumer's own limits, for hints."""

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._consumer = consumer
        self._turns = Turns()
        self._of_celery = replace_limiter(consumer, self.limit)

    def limit(self, request: Any, bucket: Any, tokens: float) -> Any:
        """Start a message's task when its turn comes (see Celery's)."""
        thread = process_of(request.app).lease_thread
        if ATTEMPT not in request.request_dict or thread is None:
            return self._of_celery(request, bucket, tokens)
        interval = tokens / bucket.fill_rate
        seconds, taken = self._turns.take(request.name, interval, time.monotonic())
        request.acknowledge()  # it makes room for the next message
        if taken and seconds <= 0:
            self._start(request)
        elif taken:
            self._consumer.timer.call_after(seconds, self._start, (request,))
        else:
            attempt, limit = request.request_dict[ATTEMPT], str(request.task.rate_limit)
            thread.put_back(request.id, attempt, request.name, limit, seconds - EARLY)
        return None

    def _start(self, request: Any) -> None:
        if worker_state.should_stop is None and worker_state.should_terminate is None:
            start_limited(self._consumer, request)
