"""Ids of runs: UUIDv7 (RFC 9562), so that a run's id sorts by the time it was made."""

import os
import time
from uuid import UUID

_last_tick = 0

# The first two bits of the random part are 10.
VARIANTS = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}


def uuid7() -> UUID:
    """Return a new UUIDv7; ids of one process are strictly increasing.

    The 12 bits after the millisecond hold the fraction of it (RFC 9562, section 6.2, method 3).
    """
    global _last_tick
    tick = max(time.time_ns() * 4096 // 1_000_000, _last_tick + 1)
    _last_tick = tick
    milliseconds, fraction = divmod(tick, 4096)
    random = int.from_bytes(os.urandom(8)) & (2**62 - 1)
    return UUID(int=milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | random)


def claim_id(claimant: int) -> UUID:
    """Return a new id of a claim; its last 32 bits are the number of the claiming child."""
    return UUID(int=uuid7().int >> 32 << 32 | claimant)


def claimant_of(claim: UUID | None) -> int | None:
    """Return the number of the child that made a claim."""
    return None if claim is None else claim.int & 0xFFFF_FFFF


def uuid7_texts(count: int) -> list[str]:
    """Return `count` new UUIDv7 as texts, in a quarter of the time that `uuid7` takes for them."""
    global _last_tick
    first = max(time.time_ns() * 4096 // 1_000_000, _last_tick + 1)
    _last_tick = first + count - 1
    random = os.urandom(8 * count).hex()
    texts = []
    for n in range(count):
        head, noise = f"{first + n:015x}", random[16 * n : 16 * n + 16]
        variant = VARIANTS[noise[0]]
        texts.append(f"{head[:8]}-{head[8:12]}-7{head[12:]}-{variant}{noise[1:4]}-{noise[4:]}")
    return texts
