"""The jobs that the benches run."""

import os
import time

from celery import shared_task


@shared_task
def nothing(*_: object) -> None:
    """Do nothing: only the way to this call is measured."""


@shared_task
def stamped(due: float) -> None:
    """Do nothing but write when this was due and when it began to the file $BENCH_EVIDENCE."""
    began = time.time()
    # One write of a short line to a file that is opened for appending: lines never mix.
    file = os.open(os.environ["BENCH_EVIDENCE"], os.O_WRONLY | os.O_APPEND)
    os.write(file, f"{due} {began}\n".encode())
    os.close(file)
