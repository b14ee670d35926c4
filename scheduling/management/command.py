"""The base of Truebeat's commands: every error is one clear line on stderr."""

import getpass
import logging
import os
import re
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, NoReturn

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, OperationalError, connection

from scheduling.errors import SchedulingError
from scheduling.management import parsing
from scheduling.management.output import printable
from scheduling.management.parsing import Moment
from scheduling.models import Priority

USAGE = 2
INTERRUPTED = 130
# argparse takes a text that begins with a minus as a value only if it is a plain number. `-5m` must
# count as a value too, so that the message names it.
NEGATIVE = re.compile(r"-\.?\d")
UNDEFINED_TABLE = "42P01"


class LedgerCommand(BaseCommand):
    """A command that shows no traceback for errors of its user or of the network.

    Exit codes: 0 done, 1 refused or the database is away, 2 usage.
    """

    # System checks are about the project, not about this request, and cost more than the request.
    requires_system_checks = ()

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Any:
        # Django's parser then raises an error instead of printing its whole usage.
        self._called_from_command_line = False
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        parser._negative_number_matcher = NEGATIVE
        return parser

    def run_from_argv(self, argv: list[str]) -> None:
        # The command prints its effect; log lines would repeat it.
        logging.getLogger("scheduling").setLevel(logging.WARNING)
        try:
            super().run_from_argv(argv)
            sys.stdout.flush()
        except CommandError as error:
            if "--traceback" in argv:
                raise
            message = str(error).removeprefix("Error: ")
            self.stderr.write(f"{argv[1]}: {one_line(message)} (see --help)")
            sys.exit(USAGE)
        except BrokenPipeError:
            # The reader of the output is gone (`| head`), so no message would arrive.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)

    def execute(self, *args: Any, **options: Any) -> Any:
        try:
            return super().execute(*args, **options)
        except SchedulingError as error:
            raise CommandError(one_line(error)) from error
        except UnicodeEncodeError as error:
            raise CommandError(f"{error.object!r} is not valid text.") from error
        except DatabaseError as error:
            raise CommandError(one_line(database_problem(error))) from error

    def add_action(
        self, actions: Any, name: str, act: Callable[[dict[str, Any], datetime], None], text: str
    ) -> ArgumentParser:
        """Add a subcommand: `act` gets the options and Postgres's time."""
        parser: ArgumentParser = actions.add_parser(name, help=text, description=text)
        parser._negative_number_matcher = NEGATIVE
        parser.set_defaults(act=act)
        return parser

    def say(self, text: str) -> None:
        """Print a line of the result."""
        self.stdout.write(text)

    def say_lines(self, lines: Iterable[str]) -> None:
        """Print lines as they come."""
        for line in lines:
            self.stdout.write(line)

    def note(self, text: str) -> None:
        """Print a remark on stderr, so that scripts can read the result."""
        self.stderr.write(printable(text), lambda line: line)

    def instant(self, moment: Moment | None) -> datetime | None:
        """Return the typed instant, and print a note if reading it took a decision."""
        if moment is not None and moment.note:
            self.note(moment.note)
        return moment and moment.at

    def limit(self, value: Moment | timedelta | None, now: datetime) -> datetime | None:
        """Return the instant of a time or of a duration, which counts from now."""
        return now + value if isinstance(value, timedelta) else self.instant(value)

    def refuse(self, text: str) -> NoReturn:
        """End with one line on stderr and exit code 1."""
        raise CommandError(one_line(text))


def add_call_options(parser: ArgumentParser) -> None:
    """Add the options of a call: of one run, or of every run of a schedule."""
    # Django keeps the name `args` of parsed options for itself.
    parser.add_argument(
        "--args", dest="task_args", type=parsing.json_array, default=[], metavar="JSON"
    )
    parser.add_argument(
        "--kwargs", dest="task_kwargs", type=parsing.json_object, default={}, metavar="JSON"
    )
    parser.add_argument("--priority", choices=[step.label for step in Priority])
    parser.add_argument("--queue", metavar="Q", help="by default the queue of CELERY_TASK_ROUTES")
    parser.add_argument(
        "--max-attempts",
        type=parsing.count,
        metavar="N",
        help="the run has failed after N failed attempts",
    )


def database_problem(error: Exception) -> str:
    """Return one sentence about an error of the database."""
    settings, state = connection.settings_dict, getattr(error.__cause__, "sqlstate", None)
    where = f"{settings['HOST'] or 'its socket'}:{settings['PORT'] or 5432}"
    if state == UNDEFINED_TABLE:
        return f"the database at {where} has no tables of Truebeat: run `manage.py migrate` first."
    if state is None and isinstance(error, OperationalError):
        return f"cannot reach the database at {where}: {error}"
    return f"the database at {where} refused: {error}"


def user_name() -> str:
    """Return the operating system's name of the user who runs this command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def one_line(message: object) -> str:
    """Return a message as one line without control characters for a terminal."""
    return printable(" ".join(str(message).split()))
