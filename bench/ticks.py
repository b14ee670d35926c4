"""Writes the milliseconds of each tick, without the sleep after it, to $BENCH_TICKS.

For schedulers that time themselves.
"""

import os
import time


def note(started: float) -> None:
    with open(os.environ["BENCH_TICKS"], "a") as file:
        file.write(f"{(time.perf_counter() - started) * 1000}\n")
