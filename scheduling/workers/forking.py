"""Forks of a worker's parent: the memory that children share, the locks that threads hold.

None is forked while a thread talks to Postgres or Redis: a child that is forked in the middle of a
connect inherits libpq's or the resolver's locks as they are, and hangs in its own first connect.
"""

import gc
import os
import threading

from scheduling.postgres.silence import waits


class NoFork:
    """A lock that is also taken for each fork; its holder waits for Postgres."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.forbid, self.allow = self._lock.acquire, self._lock.release

    def __enter__(self) -> None:
        self._lock.acquire()
        waits.__enter__()

    def __exit__(self, *_: object) -> None:
        waits.__exit__()
        self._lock.release()


def share_memory() -> None:
    """Keep imported objects out of Python's garbage collector, before the first fork.

    It writes into every object that it looks at, and so gives each child a copy of nearly all of
    the parent's memory: 40 MB, where 10 MB do.
    """
    gc.collect()
    gc.freeze()


no_fork = NoFork()
os.register_at_fork(
    before=no_fork.forbid, after_in_parent=no_fork.allow, after_in_child=no_fork.allow
)
