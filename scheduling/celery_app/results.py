"""The result backend: django-celery-results, whose rows for tracked runs `finish` writes.

A result that is written apart from the run it belongs to can contradict it. So here a tracked run's
result is only prepared; it is stored in the transaction that moves the run.
"""

from typing import Any
from uuid import UUID

from celery import group, maybe_signature, states
from celery.app.task import Context
from celery.backends.base import _result_errbacks  # type: ignore[attr-defined]
from celery.canvas import _chain, _chord  # type: ignore[attr-defined]
from celery.exceptions import ChordError
from celery.utils.functional import maybe_list
from celery.utils.time import maybe_timedelta
from django_celery_results.backends.database import trigger_callback

from scheduling import clock
from scheduling.execution import claiming, finishing, waiting
from scheduling.history import pruning
from scheduling.models import Run
from scheduling.runs import chords
from scheduling.runs.errbacks import send_errbacks
from scheduling.runs.follow_ups import sender
from scheduling.runs.running import current, run_id_of
from scheduling.runs.stored_results import PreparingBackend


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
            waiting.settle(task_id, self.prepare(result, status, traceback, request))
            return result
        running = current()
        if running is not None and running.tracked and str(running.id) == task_id:
            prepared = self.prepare(result, status, traceback, request)
            if status in states.READY_STATES or status == states.RETRY:
                running.result = prepared
            else:
                finishing.record_progress(UUID(task_id), running.attempt, prepared)
        elif request is None and status == states.REVOKED and _is_run(task_id):
            pass  # a worker was told of a revoke: what becomes of the run, the ledger says
        elif not claiming.report(task_id, request, status, result, traceback):
            super()._store_result(task_id, result, status, traceback, request, using)
        return result

    def _get_task_meta_for(self, task_id: str) -> Any:
        """Read a result by the id of its task: of a run in whatever form its UUID was given."""
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
        """Delete what has expired (`result_expires`); a run's result stays as long as its run."""
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
        if sender() is None:
            super().on_chord_part_return(request, state, result, **kwargs)
            return
        header = chords.count_part(request.group)
        if header is None:
            return
        body = maybe_signature(request.chord, app=self.app)
        if header.ready():
            trigger_callback(self.app, body, header)
            return
        try:  # one that is a plain message and ignores its result
            raise ChordError("a part of it has left no result")
        except ChordError as error:
            self.chord_error_from_stack(body, error)

    def chord_error_from_stack(self, callback: Any, exc: Any = None) -> Any:
        """Fail a chord's body, and with it the chord that the body itself is a part of.

        Celery leaves that one waiting for ever.
        """
        failed = super().chord_error_from_stack(callback, exc)
        if sender() is not None and not isinstance(callback, group):
            *earlier, last = callback.tasks if isinstance(callback, _chain) else [callback]
            for step in earlier:
                self.store_result(step.id, exc, states.FAILURE)
            self._count_failed(last, exc)
        return failed

    def _count_failed(self, part: Any, error: Any) -> None:
        while isinstance(part, _chord):
            part = maybe_signature(part.body, app=self.app)
        if part.options.get("chord"):
            request = Context(part.options, id=part.id, group=part.options.get("group_id"))
            self.on_chord_part_return(request, states.FAILURE, error)

    def _handle_group_chord_error(self, group_callback: Any, backend: Any, exc: Any = None) -> None:
        """Fail each part of a chord's body that is a group; Celery would also revoke them.

        They were never sent, and a transaction is no place for a broadcast.
        """
        if sender() is None:
            super()._handle_group_chord_error(group_callback, backend, exc)
            return
        group_callback.freeze()
        error = getattr(exc, "__cause__", None) or exc
        own = maybe_list(group_callback.options.get("link_error")) or []
        for part in group_callback.tasks:
            task_id, errbacks = _result_errbacks(part, self.app)
            errbacks += [errback for errback in own if errback not in errbacks]
            self.store_result(task_id, error, states.FAILURE)
            send_errbacks(Context(id=task_id, task=part.task, errbacks=errbacks), error, None)
            self._count_failed(part, error)


def _is_run(task_id: str) -> bool:
    run_id = run_id_of(task_id)
    return run_id is not None and Run.objects.filter(pk=run_id).exists()
