"""What the parent process of a worker adds to Celery's: leases, and endings it alone can see.

The consumer's loop itself never waits for the database: a thread does (`keeper`). Another
one looks at load and progress (`watch`).
"""

import os
import threading
from typing import Any

from celery import bootsteps
from celery.signals import worker_process_init, worker_shutdown, worker_shutting_down
from celery.worker.request import Request

from scheduling import execution
from scheduling.ids import uuid7
from scheduling.silence import waits
from scheduling.transport import ATTEMPT
from scheduling.workers.forking import share_memory
from scheduling.workers.keeper import Keeper
from scheduling.workers.stopping import listen_in_child
from scheduling.workers.watch import Watch

worker_process_init.connect(listen_in_child, weak=False)
worker_process_init.connect(waits.watch, weak=False)


class HintRequest(Request):
    """A request that acknowledges hints as soon as a child has them: leases bring work back."""

    def on_accepted(self, pid: Any, time_accepted: float) -> None:
        super().on_accepted(pid, time_accepted)
        if ATTEMPT in self.request_dict:
            self.acknowledge()

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
        share_memory()
        execution.worker_name = f"{worker.hostname[-200:]}:{os.getpid()}:{uuid7().hex[-8:]}"

    def start(self, worker: Any) -> None:
        keeper = Keeper(worker)
        execution.reporter = keeper.take
        threading.Thread(target=keeper.live, name="leases", daemon=True).start()
        threading.Thread(target=keeper.keep_within_leases, name="fence", daemon=True).start()
        waits.watch()
        Watch(worker).start()
        worker_shutting_down.connect(keeper.shut_down, weak=False)
        worker_shutdown.connect(keeper.drain, weak=False)
