"""No child is forked while one of the parent's threads talks to Postgres or Redis.

A child that is forked in the middle of a connect inherits libpq's or the resolver's locks as they
are, and hangs in its own first connect.
"""

import os
import threading

no_fork = threading.Lock()
os.register_at_fork(
    before=no_fork.acquire, after_in_parent=no_fork.release, after_in_child=no_fork.release
)
