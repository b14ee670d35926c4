"""Signs hints, so that a program without the key cannot forge one by writing to Redis.

The key is HINT_KEY, or SECRET_KEY if HINT_KEY is not set. To change it without a pause, put the old
key into SECRET_KEY_FALLBACKS: beat signs with the new key, and workers accept both.
"""

import hashlib
import hmac
from binascii import hexlify
from collections.abc import Callable, Sequence
from functools import lru_cache

from django.conf import settings

# Fields of a hint beside Celery's own: the attempt that it may start (its presence makes a message
# a hint), the run's ledger, and the signature.
ATTEMPT, LEDGER, SIGNATURE = "run_attempt", "run_ledger", "run_signature"
# The task's name. Celery's own field for that is missing while a hint lies in Redis: a worker that
# is not Truebeat's would call the task, without the run's arguments. So it drops the message.
TASK = "run_task"


def signer(
    ledger: str, queue: str, attempt: int, task: str, limits: Sequence[float | None]
) -> Callable[[bytes], bytes]:
    """Return the function from a run's id to a hint's signature, for hints that are alike."""
    signed = _begun(keys()[0], _alike(ledger, queue, attempt, task, limits))

    def sign(run_id: bytes) -> bytes:
        one = signed.copy()
        one.update(run_id)
        return hexlify(one.digest())

    return sign


def is_signed(
    signature: str, ledger: str, queue: str, run_id: str, attempt: object, task: str, limits: object
) -> bool:
    """Return whether a hint was signed, as it is, with one of the keys."""
    alike = _alike(ledger, queue, attempt, task, limits)
    given = signature.encode("utf-8", "replace")
    return any(
        hmac.compare_digest(_signature(key, alike, run_id).encode(), given) for key in keys()
    )


def _alike(ledger: str, queue: str, attempt: object, task: str, limits: object) -> bytes:
    # No name holds a NUL, which Postgres refuses: texts that are equal have equal parts.
    return "\0".join((ledger, queue, repr(attempt), repr(limits), task, "")).encode(
        "utf-8", "backslashreplace"
    )


def _signature(key: bytes, alike: bytes, run_id: str) -> str:
    return _begun(key, alike + run_id.encode("utf-8", "backslashreplace")).hexdigest()


def _begun(key: bytes, signed: bytes) -> "hashlib.blake2b":
    # Keyed BLAKE2 (RFC 7693) is a MAC by itself, and takes a third of the time of HMAC-SHA256.
    return hashlib.blake2b(signed, key=key, digest_size=16)


def keys() -> tuple[bytes, ...]:
    """Return the keys that count; the first signs."""
    return _derived(
        getattr(settings, "HINT_KEY", "") or settings.SECRET_KEY,
        tuple(settings.SECRET_KEY_FALLBACKS),
    )


@lru_cache
def _derived(key: str, earlier: tuple[str, ...]) -> tuple[bytes, ...]:
    """Return the keys of hints: not the secrets themselves, which sign other things, too."""
    return tuple(
        hashlib.sha256(b"truebeat.hint\0" + secret.encode()).digest() for secret in (key, *earlier)
    )
