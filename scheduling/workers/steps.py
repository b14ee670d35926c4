"""The step of a worker's start that makes its gate, its intake and its threads.

The consumer's loop itself never waits for the database: `LeaseThread` does. Another thread looks at
load and progress (`Watch`).
"""

import os
import threading
from typing import Any

from celery import bootsteps
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.signals import worker_process_init, worker_shutdown, worker_shutting_down

from scheduling.broker.gate import Gate
from scheduling.broker.intake import Intake
from scheduling.celery_app import remote_control
from scheduling.errors import EnqueueError
from scheduling.ids import uuid7
from scheduling.postgres.silence import waits
from scheduling.task_options import check_queue
from scheduling.worker_process import WorkerProcess
from scheduling.workers import pools
from scheduling.workers.forking import share_memory
from scheduling.workers.lease_thread import LeaseThread
from scheduling.workers.stopping import listen_in_child
from scheduling.workers.watch import Watch


class LedgerStep(bootsteps.StartStopStep):
    """Makes the worker's `WorkerProcess`, and starts its lease thread.

    The lease thread lives until the process ends. It must outlive the pool: runs that a warm
    shutdown waits for need their leases.
    """

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        pools.refuse_others(worker.pool_cls)
        for queue in worker.app.amqp.queues.consume_from:
            _check_queue(queue)
        remote_control.guard()
        share_memory()
        name = f"{worker.hostname[-200:]}:{os.getpid()}:{uuid7().hex[-8:]}"
        intake = Intake()
        intake.close("gate", "waits for Postgres to say whose hints are its own")
        self._thread = LeaseThread(worker, name, intake)
        gate = Gate(worker.app, self._thread.take_unknown)
        worker.app.worker_process = WorkerProcess(name, intake, gate, self._thread)
        for prepare in (listen_in_child, waits.watch):
            worker_process_init.connect(prepare, weak=False)

    def start(self, worker: Any) -> None:
        thread = self._thread
        threading.Thread(target=thread.live, name="leases", daemon=True).start()
        threading.Thread(target=thread.keep_within_leases, name="fence", daemon=True).start()
        waits.watch()
        Watch(worker).start()
        if isinstance(worker.pool, ThreadPool):
            pools.ask_anew_at_each_end(worker.pool, worker.hub)
        worker_shutting_down.connect(thread.shut_down, weak=False)
        worker_shutdown.connect(thread.drain, weak=False)


def _check_queue(queue: str) -> None:
    """End the worker at once if it is to listen to a name that no queue can have: `-Q unacked`."""
    try:
        check_queue(queue)
    except EnqueueError as error:
        raise SystemExit(f"truebeat: {error}") from None
