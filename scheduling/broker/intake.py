"""Whether this worker takes messages from Redis, and when it last took one.

A worker asks Redis for one message at a time. Any of its threads may close the intake, with a
reason. The transport looks here before it asks, so a message that Redis gave is never put back.
"""

import math
import time


class Intake:
    """The intake of one worker; its threads share it."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self.taken = 0  # messages since the start
        self.refused_at = -math.inf  # when Redis last answered a request for a message by an error
        self.looked_at = time.monotonic()  # when the worker's loop last came by

    def close(self, by: str, why: str) -> None:
        """Take no message until `by` reopens the intake."""
        self._reasons[by] = why

    def reopen(self, by: str) -> bool:
        """Take back the reason that `by` gave; return whether there was one."""
        return self._reasons.pop(by, None) is not None

    def closed(self) -> str:
        """Return why no message is taken, or "" if the intake is open."""
        return "; ".join(list(self._reasons.values()))

    def note_look(self) -> None:
        self.looked_at = time.monotonic()

    def note_refusal(self) -> None:
        self.refused_at = time.monotonic()

    def note_taken(self) -> None:
        self.taken += 1
