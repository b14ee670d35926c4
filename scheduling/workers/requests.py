"""A worker's request for a hint: which of Celery's ways to end a task apply to a run."""

import math
import os
from typing import Any, cast

from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined]
from celery.exceptions import WorkerLostError
from celery.signals import worker_shutting_down
from celery.worker.request import Request
from celery.worker.state import task_ready

from scheduling.broker.signing import ATTEMPT
from scheduling.execution import claiming
from scheduling.worker_process import CLAIMANT, process_of
from scheduling.workers.leases import ours_from

# The errors by which Celery reports that a child has ended in the midst of its work.
LOST = (WorkerLostError, SystemExit, KeyboardInterrupt)


class HintRequest(Request):
    """A request that acknowledges a hint as soon as a child has it: leases bring work back.

    Remote control does not reach hints: anybody who can write to Redis can ask workers to revoke a
    run. The ledger says which runs are cancelled.

    The ledger also decides on a hint whose child was lost, and the lease thread asks it.
    Celery would look for the result here, in the consumer's loop, and send the task again.
    """

    @property
    def is_hint(self) -> bool:
        return ATTEMPT in self.request_dict

    # Until when (monotonic) its run is surely this worker's: see `leases.renew`.
    ours_until = math.inf

    def on_accepted(self, pid: Any, time_accepted: float) -> None:
        """Note which child has the hint, before the hint counts as begun (see Celery's)."""
        if self.is_hint:
            # Only a pool without children calls this in the thread that executes.
            here = pid == os.getpid()
            self.request_dict[CLAIMANT] = claiming.claimant() if here else pid
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
            task_ready(self)  # Celery would end the worker, with everything that its children do
            return
        super().on_failure(exc_info, send_failed_event, return_ok)
        rejected = task.acks_late and task.reject_on_worker_lost  # Celery has reported nothing then
        if self.is_hint and rejected and isinstance(error, LOST):
            lost = WorkerLostError(f"its child was lost: {error}")
            context = self._context  # type: ignore[attr-defined]
            task.backend.mark_as_failure(self.id, lost, request=context)

    def revoked(self) -> Any:
        return not self.is_hint and super().revoked()

    def terminate(self, pool: Any, signal: Any = None) -> None:
        if not self.is_hint:
            super().terminate(pool, signal)
        elif thread := process_of(self.app).lease_thread:
            thread.look_soon()

    def _success_was_stored(self) -> Any:
        return not self.is_hint and super()._success_was_stored()  # type: ignore[misc]

    def _retry_worker_lost(self, *args: Any) -> bool:
        return not self.is_hint and super()._retry_worker_lost(*args)  # type: ignore[misc]

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """End this task, at a cold shutdown (see Celery's).

        A pool of threads cannot. Then the lease thread hands its runs back and ends the process.
        """
        try:
            super().cancel(pool, signal, emit_retry)
        except NotImplementedError:
            worker_shutting_down.send(sender=self.hostname, sig="SIGQUIT", how="Cold", exitcode=0)
