"""Notices a worker that lives but takes no work although hints wait and it has room.

After a restart of Redis, or a network that forgot a connection, a consumer can wait for ever
on a dead connection. It would still answer a ping. So this looks for progress, over a fresh
connection of its own, and restarts a worker that makes none.
"""

import logging
import time
from typing import Any

import redis
from celery.concurrency.solo import TaskPool as SoloPool
from celery.worker import state as worker_state
from django.conf import settings

from scheduling.broker import clients
from scheduling.logs import event
from scheduling.models import Priority
from scheduling.runs.hints import Lane, list_key
from scheduling.worker_process import process_of
from scheduling.workers.forking import no_fork
from scheduling.workers.leases import active_requests

logger = logging.getLogger(__name__)

REFUSAL_LASTS = 10.0  # seconds for which an error that Redis answered says why nothing is taken


LOOK_EVERY = 2.0  # seconds
LOOP_SLEEPS = 10.0  # seconds for which kombu's loop sleeps, at most, with nothing to do


class Liveness:
    """Looks repeatedly whether the worker takes work."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._intake = process_of(worker.app).intake
        self._since: float | None = None  # since when it could have taken something
        self._taken = 0
        self._looks = 0

    def stuck(self) -> str:
        """Return why the worker is stuck, or "". To be called some times in settings.STUCK_AFTER.

        If that is 0, no worker is stuck. One look is never enough: a worker that was frozen has a
        clock that jumped.
        """
        watched = settings.STUCK_AFTER.total_seconds() > 0
        waiting = self._waiting() if watched and self._could_take() else 0
        if not waiting or self._intake.taken != self._taken:
            self._since, self._taken, self._looks = None, self._intake.taken, 0
            return ""
        now = time.monotonic()
        self._since, self._looks = self._since or now, self._looks + 1
        if self._looks < 3 or now - self._since < settings.STUCK_AFTER.total_seconds():
            return ""
        return f"{waiting} messages wait, and none was taken for {now - self._since:.0f} s"

    def _could_take(self) -> bool:
        """Whether this worker takes messages, and has room for one or a loop that stands still."""
        if time.monotonic() - self._intake.refused_at < REFUSAL_LASTS:
            return False  # a restart would not change the answer of Redis
        if self._intake.closed() or worker_state.should_stop is not None or self._limits_rates():
            return False
        pool = self._worker.pool
        slots = getattr(self._worker, "max_concurrency", None) or pool.num_processes
        busy, patience = len(active_requests()), settings.STUCK_AFTER.total_seconds()
        if busy and isinstance(pool, SoloPool):
            return False  # the loop itself runs the job, for as long as that takes
        standing = (
            time.monotonic() - self._intake.looked_at > max(patience, LOOP_SLEEPS) + LOOK_EVERY
        )
        return standing or busy < slots

    def _limits_rates(self) -> bool:
        """Whether messages wait in this process for Celery's rate limits: then it is not stuck."""
        consumer = getattr(self._worker, "consumer", None)
        buckets = list(getattr(consumer, "task_buckets", {}).values())
        return any(bucket is not None and bucket.contents for bucket in buckets)

    def _waiting(self) -> int:
        """Return how many messages lie in this worker's queues; 0 if Redis does not answer."""
        queues = list(self._worker.app.amqp.queues.consume_from)
        try:
            # A new connection each time: a kept one may be as dead as the worker's.
            with no_fork, clients.client(socket_timeout=2) as client:
                pipeline = client.pipeline(transaction=False)
                for queue in queues:
                    for priority in Priority:
                        pipeline.llen(list_key(Lane(queue, priority)))
                found = pipeline.execute(raise_on_error=False)
        except (redis.RedisError, OSError) as error:
            event(logger, "queues_not_seen", level=logging.DEBUG, error=error)
            return 0
        return sum(length for length in found if isinstance(length, int))
