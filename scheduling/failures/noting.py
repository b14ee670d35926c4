"""Notes the kind and the place of a failure, in the statement that ends its run.

A failure is a run that ended as failed. A failed attempt that is retried is not a failure yet: it
stays in its run's errors. Failures of the same task, exception type and place are of one kind.
"""

import hashlib
import os
import re
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings

from scheduling.postgres.sql import clean

EXCEPTION_MAX = 200
PLACE_MAX = 300
ERROR_MAX = 2_000  # characters of an error's text that its group keeps
READ_MAX = 200_000  # characters of a traceback's last part that are looked at

# A part of the statement in `finishing`; `done` is the run that the statement has ended.
NOTE = """
INSERT INTO scheduling_failure
    (run_id, schedule_id, schedule_name, task, exception, place, error, noted_at)
SELECT run.id, run.schedule_id, run.schedule_name, run.task, %(n_exception)s, %(n_place)s,
       %(n_error)s, clock_timestamp()
  FROM done JOIN scheduling_run run ON run.id = done.id
"""

# Endings whose place in the code does not matter: the job was interrupted there by chance.
PLACES = {
    "TimeLimitExceeded": "(time limit)",
    "SoftTimeLimitExceeded": "(time limit)",
    "WorkerLostError": "(worker lost)",
    "Terminated": "(worker lost)",
}
UNNAMED = "Failed"  # the type of an ending without an exception

HEADER = re.compile(r"^[ |+]*(?:Exception Group )?Traceback \(most recent call last\):$", re.M)
FRAME = re.compile(r'^[ |]*File "(?P<file>.+)", line \d+, in (?P<function>.+)$')
BETWEEN = re.compile(
    r"^(?:The above exception was the direct cause of the following exception"
    r"|During handling of the above exception, another exception occurred):$",
    re.M,
)
NESTED = {"<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>"}  # inside a function that has a name


def described(error: str, traceback: str, place: str = "") -> dict[str, Any]:
    """Return NOTE's parameters for an attempt's `Type: message` and its traceback's text."""
    exception = type_of(error)
    return {
        "n_exception": clean(exception)[:EXCEPTION_MAX],
        "n_place": clean(place or PLACES.get(exception) or place_of(traceback))[-PLACE_MAX:],
        "n_error": clean(error[:ERROR_MAX]),
    }


def type_of(error: str) -> str:
    """Return the exception type that a text of finishing.text_of begins with."""
    name = error.partition(":")[0].removesuffix(" (it cannot say more)")
    return name if name.isidentifier() else UNNAMED


def place_of(traceback: str) -> str:
    """Return the innermost frame of the project's own code, as `app/module.py:function`.

    It has no line number, so that an edit above the function does not make another failure of it.
    If no frame is in the project, it is the innermost frame; "" without a traceback.
    """
    last = BETWEEN.split(traceback)[-1][:READ_MAX]
    frames = _frames(last)
    own = [frame for frame in frames if frame[0] is not None and not _of_the_engine(frame[0])]
    if own:
        return f"{own[-1][0]}:{own[-1][1]}"
    others = [frame for frame in frames if frame[0] is None]
    return f"{Path(others[-1][2]).name}:{others[-1][1]}" if others else ""


def group_id(task: str, exception: str, place: str) -> UUID:
    """Return the id of the group of such failures, which is the same on every machine."""
    # A text of Postgres holds no NUL, so two different triples never give the same text.
    text = "\0".join((task, exception, place))
    return UUID(bytes=hashlib.sha256(text.encode()).digest()[:16])


def _frames(text: str) -> list[tuple[str | None, str, str]]:
    """Return the frames of a traceback's text: (path in the project or None, function, file)."""
    header = HEADER.search(text)
    frames = []
    for line in text[header.end() :].splitlines()[1:] if header else ():
        if found := FRAME.match(line):
            file, function = found["file"], found["function"]
            if function not in NESTED:
                frames.append((_own(file), function, file))
        elif not line[:1].isspace():
            break  # the exception's own text follows
    return frames


@cache
def _root() -> str:
    return f"{getattr(settings, 'BASE_DIR', os.getcwd())}/"


def _own(file: str) -> str | None:
    """Return a file's path in the project, or None if it is not in the project."""
    path = file.removeprefix(_root())
    installed = "/site-packages/" in file or "/dist-packages/" in file
    return None if path == file or installed else path


def _of_the_engine(path: str) -> bool:
    return path.startswith("scheduling/") and path != "scheduling/tasks.py"
