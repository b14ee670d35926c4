"""Whether this worker takes messages from Redis, and when it last took one.

A worker asks Redis for one message at a time. Here any thread may say why it should not; the
transport looks before it asks, so nothing that Redis gave is put down again.
"""

import math
import time

_reasons: dict[str, str] = {}
taken = 0  # messages since the start
refused_at = -math.inf  # when Redis last refused to give a message
looked_at = time.monotonic()  # when the worker's loop last came by


def close(by: str, why: str) -> None:
    """Let this worker take nothing more, until `by` opens it again."""
    _reasons[by] = why


def reopen(by: str) -> bool:
    """Take `by`'s reason back; return whether it had one."""
    return _reasons.pop(by, None) is not None


def closed() -> str:
    """Return why nothing is taken, or "" where the worker takes what it can."""
    return "; ".join(list(_reasons.values()))


def note_look() -> None:
    global looked_at
    looked_at = time.monotonic()


def note_refusal() -> None:
    global refused_at
    refused_at = time.monotonic()


def note_taken() -> None:
    global taken
    taken += 1
