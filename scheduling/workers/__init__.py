"""Additions to the parent process of a Celery worker: leases, load guard, endings.

The consumer's loop itself never waits for the database: a thread does (`keeper`). Another
one looks at load and progress (`watch`).
"""

import math
import os
import threading
from typing import Any, cast

from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined]
from celery import bootsteps
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.exceptions import WorkerLostError
from celery.signals import worker_process_init, worker_shutdown, worker_shutting_down
from celery.utils.functional import noop
from celery.worker.request import Request
from celery.worker.state import task_ready

from scheduling.broker import gate, intake
from scheduling.broker.signing import ATTEMPT
from scheduling.celery_app import remote_control
from scheduling.errors import EnqueueError
from scheduling.execution import claiming
from scheduling.ids import uuid7
from scheduling.postgres.silence import waits
from scheduling.task_options import check_queue
from scheduling.workers import pools, rate_limits
from scheduling.workers.forking import share_memory
from scheduling.workers.keeper import Keeper
from scheduling.workers.leases import ours_from
from scheduling.workers.stopping import listen_in_child
from scheduling.workers.watch import Watch

worker_process_init.connect(listen_in_child, weak=False)
worker_process_init.connect(waits.watch, weak=False)


# What Celery is told where a child has ended in the midst of its work.
LOST = (WorkerLostError, SystemExit, KeyboardInterrupt)

_keeper: Keeper | None = None


class HintRequest(Request):
    """A request that acknowledges hints as soon as a child has them: leases bring work back.

    Remote control reaches no hint: anybody who can write to Redis can tell workers to revoke one.
    Which runs are cancelled, the ledger says.

    What becomes of a hint whose child was lost is the ledger's to say, which the lease thread asks.
    Celery would look for its result here, in the consumer's loop, and send the task again.
    """

    @property
    def is_hint(self) -> bool:
        return ATTEMPT in self.request_dict

    # Until when (monotonic) its run is surely this worker's: see `leases.renew`.
    ours_until = math.inf

    def on_accepted(self, pid: Any, time_accepted: float) -> None:
        """Note who has the hint, before it counts as begun (see Celery's)."""
        if self.is_hint:
            # Only a pool without children calls this in the thread that executes.
            here = pid == os.getpid()
            self.request_dict[claiming.CLAIMANT] = claiming.claimant() if here else pid
            self.ours_until = ours_from(time_accepted)
        super().on_accepted(pid, time_accepted)
        if self.is_hint:
            self.acknowledge()

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> None:
        error, task = exc_info.exception, cast("Any", self.task)
        error = error.exc if isinstance(error, ExceptionWithTraceback) else error
        if self.is_hint and isinstance(error, MemoryError):
            task_ready(self)  # Celery would end the worker, and with it all that its children do
            return
        super().on_failure(exc_info, send_failed_event, return_ok)
        rejected = task.acks_late and task.reject_on_worker_lost  # then Celery has reported nothing
        if self.is_hint and rejected and isinstance(error, LOST):
            lost = WorkerLostError(f"its child was lost: {error}")
            context = self._context  # type: ignore[attr-defined]
            task.backend.mark_as_failure(self.id, lost, request=context)

    def revoked(self) -> Any:
        return not self.is_hint and super().revoked()

    def terminate(self, pool: Any, signal: Any = None) -> None:
        if not self.is_hint:
            super().terminate(pool, signal)
        elif _keeper is not None:
            _keeper.look_soon()

    def _success_was_stored(self) -> Any:
        return not self.is_hint and super()._success_was_stored()  # type: ignore[misc]

    def _retry_worker_lost(self, *args: Any) -> bool:
        return not self.is_hint and super()._retry_worker_lost(*args)  # type: ignore[misc]

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """End this task, at a cold shutdown (see Celery's).

        A pool of threads cannot: then the lease thread hands its runs back, and ends the process.
        """
        try:
            super().cancel(pool, signal, emit_retry)
        except NotImplementedError:
            worker_shutting_down.send(sender=self.hostname, sig="SIGQUIT", how="Cold", exitcode=0)


class LeaseKeeper(bootsteps.StartStopStep):
    """Starts the lease thread with the worker; it lives until the process ends.

    It must outlive the pool: runs that a warm shutdown waits for need their leases.
    """

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        pools.refuse_others(worker.pool_cls)
        for queue in worker.app.amqp.queues.consume_from:
            _check_queue(queue)
        gate.open_in(worker.app)
        remote_control.guard()
        intake.close("gate", "waits for Postgres to say whose hints are its own")
        share_memory()
        claiming.worker_name = f"{worker.hostname[-200:]}:{os.getpid()}:{uuid7().hex[-8:]}"

    def start(self, worker: Any) -> None:
        global _keeper
        keeper = _keeper = Keeper(worker)
        claiming.reporter, claiming.storer = keeper.take, keeper.store
        gate.report_unknown, rate_limits.put_back = keeper.take_unknown, keeper.put_back
        threading.Thread(target=keeper.live, name="leases", daemon=True).start()
        threading.Thread(target=keeper.keep_within_leases, name="fence", daemon=True).start()
        waits.watch()
        Watch(worker).start()
        if isinstance(worker.pool, ThreadPool):
            ask_anew_at_each_end(worker.pool, worker.hub)
        worker_shutting_down.connect(keeper.shut_down, weak=False)
        worker_shutdown.connect(keeper.drain, weak=False)


def _check_queue(queue: str) -> None:
    """End the worker at once if it is told to listen to what is no queue: `-Q unacked`."""
    try:
        check_queue(queue)
    except EnqueueError as error:
        raise SystemExit(f"truebeat: {error}") from None


def ask_anew_at_each_end(pool: Any, loop: Any) -> None:
    """Wake the consumer's loop whenever a thread is free again, to take the next message.

    A child's answer wakes it by itself. Without this, a full pool of threads that have all ended
    would do nothing until some timer of the loop's goes off: a few short runs a second.
    """
    on_apply = pool.on_apply

    def apply(*args: Any, **options: Any) -> Any:
        applied = on_apply(*args, **options)
        applied.f.add_done_callback(lambda _: loop.call_soon(noop))
        return applied

    pool.on_apply = apply
