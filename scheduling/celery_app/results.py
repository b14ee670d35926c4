"""The result backend: django-celery-results; `finish` writes the rows of tracked runs.

A result that is written apart from the run it belongs to can contradict it. So here a tracked run's
result is only prepared; it is stored in the transaction that moves the run.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from uuid import UUID

from celery import group, maybe_signature, states
from celery.app.task import Context
from celery.exceptions import ChordError
from celery.utils.functional import maybe_list
from celery.utils.time import maybe_timedelta
from django.conf import settings
from django.db import InterfaceError, OperationalError

from scheduling import clock
from scheduling.celery_internals import Chain, Chord, result_errbacks
from scheduling.execution import closing, finishing
from scheduling.history import pruning
from scheduling.models import Run
from scheduling.postgres.connections import drop_unclean
from scheduling.postgres.patience import patiently
from scheduling.runs import chords
from scheduling.runs.errbacks import send_errbacks
from scheduling.runs.follow_ups import sender
from scheduling.runs.running import current, run_id_of
from scheduling.runs.stored_results import PreparingBackend
from scheduling.worker_process import process_of


class Backend(PreparingBackend):
    """Reads like its base, and leaves the writes of tracked runs to `finish`."""

    def _store_result(
        self,
        task_id: str,
        result: Any,
        status: str,
        traceback: str | None = None,
        request: Any = None,
        using: str | None = None,
    ) -> Any:
        if sender() is not None:
            closing.settle(task_id, self.prepare(result, status, traceback, request))
            return result
        running = current()
        if running is not None and running.tracked and str(running.id) == task_id:
            prepared = self.prepare(result, status, traceback, request)
            if status in states.READY_STATES or status == states.RETRY:
                running.result = prepared
            else:
                finishing.record_progress(UUID(task_id), running.attempt, prepared)
        elif request is None and status == states.REVOKED and _is_run(task_id):
            pass  # a worker reports a revoke, but only the ledger ends a run
        elif not process_of(self.app).report(task_id, request, status, result, traceback):
            store = super()._store_result
            _patiently(partial(store, task_id, result, status, traceback, request, using))
        return result

    # The lease thread stores the parent's reports of plain messages: the consumer's loop must not
    # wait for the ledger, and an error there would end the worker.

    def mark_as_failure(
        self, task_id: str, exc: Any, traceback: Any = None, request: Any = None, **options: Any
    ) -> Any:
        act = partial(super().mark_as_failure, task_id, exc, traceback, request, **options)
        return None if process_of(self.app).store(act, request) else act()

    def mark_as_revoked(
        self, task_id: str, reason: str = "", request: Any = None, **options: Any
    ) -> Any:
        act = partial(super().mark_as_revoked, task_id, reason, request, **options)
        return None if process_of(self.app).store(act, request) else act()

    def mark_as_retry(
        self, task_id: str, exc: Any, traceback: Any = None, request: Any = None, **options: Any
    ) -> Any:
        act = partial(super().mark_as_retry, task_id, exc, traceback, request, **options)
        return None if process_of(self.app).store(act, request) else act()

    def _get_task_meta_for(self, task_id: str) -> Any:
        """Read a result by the id of its task; a run's UUID can be given in any form."""
        meta = super()._get_task_meta_for(task_id)
        run_id = run_id_of(task_id)
        if run_id is None or str(run_id) == task_id or meta["status"] in states.READY_STATES:
            return meta
        of_the_run = super()._get_task_meta_for(str(run_id))
        return meta if of_the_run["status"] == states.PENDING else of_the_run

    def store_plain(self, task_id: str, result: Any, status: str, traceback: str | None) -> None:
        """Store the encoded `result` of a message that has no run, as the base class would."""
        super()._store_result(task_id, result, status, traceback)

    def cleanup(self) -> None:
        """Delete expired results (`result_expires`); a run's result stays as long as its run."""
        if self.expires:
            pruning.prune_results(clock.now() - maybe_timedelta(self.expires))
            self.GroupModel._default_manager.delete_expired(self.expires)

    def _call_task_errbacks(self, request: Any, exc: Any, traceback: Any) -> None:
        if sender() is None:
            super()._call_task_errbacks(request, exc, traceback)
        else:
            send_errbacks(request, exc, traceback)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """Count a part of a chord; the last one writes its body, or fails it."""
        sending = sender()
        if sending is None:
            count = super().on_chord_part_return
            _patiently(partial(count, request, state, result, **kwargs))
            return
        header = chords.count_part(request.group)
        if header is None:
            return
        body: Any = maybe_signature(request.chord, app=self.app)
        sending.outbox.flush()
        try:
            body.delay(chords.values_of(header))
            sending.outbox.flush()
        except (OperationalError, InterfaceError):
            raise
        except Exception as error:
            sending.outbox.discard()
            if not isinstance(error, ChordError):
                error = ChordError(f"Callback error: {error!r}")
            self.chord_error_from_stack(body, error)

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        """Note a chord that begins (see Celery's)."""
        chords.begin(*header_result_args)

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        """Add a part to a chord that has begun (see Celery's)."""
        chords.add_part(chord_id, result)

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_interval: Any = None,
    ) -> Any:
        """Wait for a result (see Celery's); after a failure, look at those before it once more.

        `get()` raises the error of the part that failed and not the ChordError of the body, as it
        does on Celery's Redis backend. Both may fail between two looks.
        """
        meta = super().wait_for(task_id, timeout, interval, no_ack, on_interval)
        if on_interval and meta["status"] in states.PROPAGATE_STATES:
            on_interval()
        return meta

    def chord_error_from_stack(self, callback: Any, exc: Any = None) -> Any:
        """Fail a chord's body, and with it the chord that the body itself is a part of.

        Celery leaves that one waiting for ever.
        """
        if sender() is None or isinstance(callback, group):
            return super().chord_error_from_stack(callback, exc)
        self._call_errbacks_of(callback, exc)
        self._fail(callback, exc, states.FAILURE)
        self._fail_chain(callback.options.get("chain"), exc)
        return None

    def _call_errbacks_of(self, step: Any, error: Any, others: Sequence[Any] = ()) -> None:
        """Call each errback of a step that will never be sent, and `others`, once.

        If the step is a part of a chord, errbacks that the chord has too are left to the chord: it
        fails as well, and `on_error` of a chord gives its errback to the chords inside it.
        """
        task_id, errbacks = result_errbacks(step, self.app)
        outer = _chord_around(step)
        later = result_errbacks(outer, self.app)[1] if outer else []
        once = list[Any]()
        for errback in (*errbacks, *others):
            if errback not in once and errback not in later:
                once.append(errback)
        send_errbacks(Context(step, id=task_id, errbacks=once), error, None)

    def _fail_chain(
        self,
        chain: Any,
        exc: Any,
        traceback: str | None = None,
        store_result: bool = True,
        state: str = states.FAILURE,
    ) -> None:
        """Fail the steps after a failed one (see Celery's)."""
        if sender() is None:
            super()._fail_chain(chain, exc, traceback, store_result, state)
            return
        for step in chain if isinstance(chain, list | tuple) else ():
            self._fail(maybe_signature(step, app=self.app), exc, state, traceback)

    def _fail(self, step: Any, error: Any, state: str, traceback: str | None = None) -> None:
        """Fail a step that will never be sent: other tasks may wait for its tasks' results.

        Celery does so for tasks alone, and where a chain ends with a group, the chord around it
        waits for ever. The header of a chord is left out: nothing but its body waits for it.
        """
        if isinstance(step, Chord):
            self._fail(maybe_signature(step.body, app=self.app), error, state, traceback)
        elif isinstance(step, group | Chain):
            for task in step.tasks:
                self._fail(maybe_signature(task, app=self.app), error, state, traceback)
        elif step.id:
            request = Context(step)
            request.update(step.options, id=step.id, group=step.options.get("group_id"))
            self.store_result(step.id, error, state, traceback=traceback, request=request)
            if request.chord:
                self.on_chord_part_return(request, state, error)

    def _handle_group_chord_error(self, group_callback: Any, backend: Any, exc: Any = None) -> None:
        """Fail each part of a chord's body that is a group; Celery would also revoke them.

        The parts were never sent, and a broadcast must not happen inside a transaction.
        """
        if sender() is None:
            super()._handle_group_chord_error(group_callback, backend, exc)
            return
        group_callback.freeze()
        error = getattr(exc, "__cause__", None) or exc
        own = maybe_list(group_callback.options.get("link_error")) or []
        for part in group_callback.tasks:
            self._call_errbacks_of(part, error, own)
            self._fail(part, error, states.FAILURE)


def _patiently(act: Callable[[], object]) -> None:
    """Write for a plain message, once its body has ended; wait for a ledger that is away."""
    running = current()
    if running is None or running.in_body:
        act()
    else:
        drop_unclean()  # a session that the job has spoilt could refuse its result
        patiently(act, settings.RUN_LEASE)


def _chord_around(step: Any) -> Any:
    """Return the body of the chord that a step is a part of, or None."""
    while isinstance(step, Chord):
        step = maybe_signature(step.body)
    if isinstance(step, Chain):
        step = maybe_signature(step.tasks[-1])
    return step.options.get("chord")


def _is_run(task_id: str) -> bool:
    run_id = run_id_of(task_id)
    return run_id is not None and Run.objects.filter(pk=run_id).exists()
