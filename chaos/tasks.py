"""The jobs: each writes its start and end to the diary, and takes time or fails."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from celery import shared_task

from chaos import evidence
from scheduling.jobs import current_run


class Deliberate(Exception):
    """Raised by a job whose argument asks it to fail."""


@contextmanager
def _written_down(token: str) -> Iterator[int]:
    """Write the start and the end of this attempt; yield its number."""
    run = current_run()
    if run is None:
        raise RuntimeError(f"{token}: this job runs without a row in the ledger.")
    who = (str(run.id), run.attempt, token, run.due_at)
    evidence.write("start", *who)
    try:
        yield run.attempt
    except Deliberate:
        evidence.write("fail", *who)
        raise
    evidence.write("end", *who)


@shared_task
def work(token: str, seconds: float = 0.0) -> int:
    """Take some time; return the attempt, so that the result says whose it is."""
    with _written_down(token) as attempt:
        time.sleep(seconds)
        return attempt


@shared_task
def flaky(token: str, times: int) -> int:
    """Fail in the first `times` attempts; the ledger's own retries bring it back."""
    with _written_down(token) as attempt:
        if attempt <= times:
            raise Deliberate(f"attempt {attempt} of {token}")
        return attempt


@shared_task(autoretry_for=(Deliberate,), max_retries=2, retry_backoff=False, default_retry_delay=0)
def retrying(token: str, times: int) -> int:
    """The same, brought back by Celery's own retries."""
    with _written_down(token) as attempt:
        if attempt <= times:
            raise Deliberate(f"attempt {attempt} of {token}")
        return attempt


@shared_task
def poison(token: str, times: int) -> int:
    """Kill the process that it runs in, in the first `times` attempts."""
    with _written_down(token) as attempt:
        if attempt <= times:
            os.kill(os.getpid(), 9)
        return attempt
