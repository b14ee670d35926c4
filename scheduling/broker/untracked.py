"""UNTRACKED_TASKS: the tasks that stay plain Celery messages, without a row in the ledger."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from django.conf import settings

# Signatures that embed other tasks; the sender takes them apart.
WRAPPERS = frozenset({"celery.chain", "celery.group", "celery.chord"})


def is_untracked(name: str) -> bool:
    """Return whether UNTRACKED_TASKS names the task, by its name or by a pattern."""
    return _matches(name, tuple(settings.UNTRACKED_TASKS))


def all_untracked(carried: object) -> bool:
    """Return whether UNTRACKED_TASKS names each task in these signatures, however deep it is."""
    return all(is_untracked(name) for name in _tasks_in(carried))


@lru_cache(maxsize=4096)
def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _tasks_in(carried: object) -> Iterator[str]:
    """Yield the names of the tasks in (lists of) signatures, and in their own links and parts."""
    waiting: list[Any] = [carried]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            name = value.get("task")
            if isinstance(name, str) and name not in WRAPPERS:
                yield name
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
