"""Waits for effects of other processes, and for their end."""

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

import psutil

T = TypeVar("T")


class WaitFor(Protocol):
    def __call__(
        self, predicate: Callable[[], T], *, timeout: float = 10.0, message: str = ""
    ) -> T: ...


def wait_for(predicate: Callable[[], T], *, timeout: float = 10.0, message: str = "") -> T:
    """Return the predicate's first true value; fail with `message` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"Not within {timeout:g} s: {message or predicate}")
        time.sleep(0.05)
    return value


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs; a zombie, which has ended already, does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
