"""The result backend: django-celery-results, whose rows for tracked runs `finish` writes.

A result that is written apart from the run it belongs to can contradict it. So here a tracked run's
result is only prepared; it is stored in the transaction that moves the run.
"""

from dataclasses import dataclass
from typing import Any

from celery import states
from celery.utils.time import maybe_timedelta
from django_celery_results.backends.database import DatabaseBackend

from scheduling import clock, execution, pruning
from scheduling.running import current


@dataclass(frozen=True)
class StoredResult:
    """The columns of one TaskResult but for its id and dates."""

    status: str
    result: str | None
    traceback: str | None
    meta: str | None
    content_type: str
    content_encoding: str
    task_name: str | None = None
    task_args: str | None = None
    task_kwargs: str | None = None
    worker: str | None = None
    periodic_task_name: str | None = None


class Backend(DatabaseBackend):  # type: ignore[misc]
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
        running = current()
        if running is not None and running.tracked and str(running.id) == task_id:
            running.result = self.prepare(result, status, traceback, request)
        elif not execution.report(task_id, request, status, result, traceback):
            super()._store_result(task_id, result, status, traceback, request, using)
        return result

    def store_plain(self, task_id: str, result: Any, status: str, traceback: str | None) -> None:
        """Store the encoded `result` of a message that has no run, as the base class would."""
        super()._store_result(task_id, result, status, traceback)

    def cleanup(self) -> None:
        """Delete what has expired (`result_expires`); a run's result stays as long as its run."""
        if self.expires:
            pruning.prune_results(clock.now() - maybe_timedelta(self.expires))
            self.GroupModel._default_manager.delete_expired(self.expires)

    def prepare(
        self, result: Any, status: str, traceback: str | None = None, request: Any = None
    ) -> StoredResult:
        """Return the TaskResult columns for an encoded `result` (see `encode_result`).

        Raises:
            kombu.exceptions.EncodeError: the result is not JSON.
        """
        content_type, content_encoding, content = self.encode_content(result)
        meta = {
            **self._get_meta_from_request(request),
            "children": self.current_task_children(request),
        }
        extended = self._get_extended_properties(request, traceback)
        return StoredResult(
            status=status,
            result=content,
            traceback=traceback,
            meta=self.encode_content(meta)[2],
            content_type=content_type,
            content_encoding=content_encoding,
            **{
                name: extended[name]
                for name in (
                    "task_name",
                    "task_args",
                    "task_kwargs",
                    "worker",
                    "periodic_task_name",
                )
            },
        )

    def prepare_error(
        self, status: str, error: BaseException, task: str | None = None
    ) -> StoredResult:
        """Return the TaskResult columns of a run that ended without its code running."""
        encoded = self.encode_result(error, states.FAILURE)
        content_type, content_encoding, content = self.encode_content(encoded)
        return StoredResult(
            status=status,
            result=content,
            traceback=None,
            meta=self.encode_content({"children": []})[2],
            content_type=content_type,
            content_encoding=content_encoding,
            task_name=task,
        )
