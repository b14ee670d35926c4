"""The values of a row of django-celery-results, before it is stored."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from celery import states
from django_celery_results.backends.database import DatabaseBackend

# Columns of django-celery-results that are narrower than some of their values.
WIDTHS = {"worker": 100}
SHORT = 100  # characters of a text whose encoding is cached


@dataclass(frozen=True)
class StoredResult:
    """The columns of one TaskResult except its id and dates."""

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


class PreparingBackend(DatabaseBackend):  # type: ignore[misc]
    """Prepares results in the form in which its base class stores them."""

    def with_children(self, result: StoredResult, children: list[Any]) -> StoredResult:
        """Return a prepared result that names the follow-ups of its task as children."""
        meta = self.decode(result.meta) if result.meta else {}
        meta["children"] = [*meta.get("children", ()), *(child.as_tuple() for child in children)]
        return replace(result, meta=self._encode_meta(meta))

    @cached_property
    def no_meta(self) -> str:
        """The encoded meta data of most results."""
        return self._encode_meta({"children": []})

    def _encode_meta(self, meta: Any) -> str:
        return str(self.encode_content(meta)[2])

    def prepare_success(self, value: object, task: str) -> StoredResult:
        """Return the TaskResult columns of a success whose task stores no result."""
        return self._prepare_apart(states.SUCCESS, value, task)

    def prepare(
        self, result: Any, status: str, traceback: str | None = None, request: Any = None
    ) -> StoredResult:
        """Return the TaskResult columns for an encoded `result` (see `encode_result`).

        Raises:
            kombu.exceptions.EncodeError: the result is not JSON.
        """
        content_type, content_encoding, content = self.encode_content(result)
        children = self.current_task_children(request)
        own = self._get_meta_from_request(request)
        meta = self._encode_meta({**own, "children": children}) if own or children else self.no_meta
        extended = self._get_extended_properties(request, traceback)
        return StoredResult(
            status=status,
            result=content,
            traceback=traceback,
            meta=meta,
            content_type=content_type,
            content_encoding=content_encoding,
            **{
                name: extended[name] and str(extended[name])[: WIDTHS.get(name)]
                for name in (
                    "task_name",
                    "task_args",
                    "task_kwargs",
                    "worker",
                    "periodic_task_name",
                )
            },
        )

    def encode_content(self, data: Any) -> tuple[str, str, str]:
        """Return content type, encoding and text of a column's value, in the app's serializer.

        Short texts and None, which are most values, are encoded once.
        """
        if data is None or (type(data) is str and len(data) < SHORT):
            return self._encoded(data)
        encoded: tuple[str, str, str] = super().encode_content(data)
        return encoded

    @cached_property
    def _encoded(self) -> Callable[[str | None], tuple[str, str, str]]:
        return lru_cache(maxsize=128)(super().encode_content)

    def prepare_error(
        self, status: str, error: BaseException, task: str | None = None
    ) -> StoredResult:
        """Return the TaskResult columns of a run that ended without its code running."""
        return self._prepare_apart(status, error, task)

    def _prepare_apart(self, status: str, value: object, task: str | None) -> StoredResult:
        encoded = self.encode_result(value, status)
        content_type, content_encoding, content = self.encode_content(encoded)
        return StoredResult(
            status=status,
            result=content,
            traceback=None,
            meta=self.no_meta,
            content_type=content_type,
            content_encoding=content_encoding,
            task_name=task,
        )
