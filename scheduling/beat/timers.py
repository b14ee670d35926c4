"""Timers of steps that a tick does not run each time."""

import time


class Timer:
    """Says whether a step is due, by the monotonic clock; a new one is due at once."""

    def __init__(self, first_in: float = 0.0) -> None:
        self.at = time.monotonic() + first_in

    def is_due(self) -> bool:
        return time.monotonic() >= self.at

    def again_in(self, seconds: float) -> None:
        self.at = time.monotonic() + seconds
