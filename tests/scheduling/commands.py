"""Calls manage.py's commands in this process, and returns their output."""

import io
from dataclasses import dataclass

from django.core.management import CommandError, call_command


@dataclass(frozen=True)
class Answer:
    """An exit code, the lines of stdout, and the text of stderr."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def called(command: str, *words: str) -> Answer:
    """Call a command as a shell would; usage errors have their exit code in a process only."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    try:
        call_command(command, *words, stdout=out, stderr=err)
    except CommandError as error:
        code = error.returncode
        err.write(f"{error}\n")
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    return Answer(code, out.getvalue(), err.getvalue())


def refusal(command: str, *words: str) -> str:
    """Return the one line with which a command refused; it must have printed nothing else."""
    answer = called(command, *words)
    assert (answer.code, answer.out) == (1, "")
    (line,) = answer.err.splitlines()
    return line
