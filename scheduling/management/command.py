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
# Argparse takes only plain numbers for values that begin with a minus; `-5m` is one as well, and is
# to be refused for what it is.
NEGATIVE = re.compile(r"-\.?\d")
UNDEFINED_TABLE = "42P01"


class LedgerCommand(BaseCommand):
    """A command that never shows its user a traceback for what the user, or the network, did.

    Exit codes: 0 done, 1 refused or the database is away, 2 usage.
    """

    # They say what is wrong with the project, not with this request, and cost more than it does.
    requires_system_checks = ()

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Any:
        # Django's parser raises, in place of printing its whole usage, when nobody says otherwise.
        self._called_from_command_line = False
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        parser._negative_number_matcher = NEGATIVE
        return parser

    def run_from_argv(self, argv: list[str]) -> None:
        # What the command did is its output; the log's own lines would only repeat it.
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
            # Whoever read the output has gone (`| head`): nothing is left to say, nor where.
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
        """Print a remark, on stderr: the result stays readable for scripts."""
        self.stderr.write(printable(text), lambda line: line)

    def instant(self, moment: Moment | None) -> datetime | None:
        """Return the instant that was typed, and say what had to be decided to read it."""
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
    """Add the options that say what to call and how: for a run, or for each of a schedule's."""
    # Django keeps the name `args` of parsed options for itself.
    parser.add_argument(
        "--args", dest="task_args", type=parsing.json_array, default=[], metavar="JSON"
    )
    parser.add_argument(
        "--kwargs", dest="task_kwargs", type=parsing.json_object, default={}, metavar="JSON"
    )
    parser.add_argument("--priority", choices=[step.label for step in Priority])
    parser.add_argument("--queue", metavar="Q", help="by default what CELERY_TASK_ROUTES says")
    parser.add_argument(
        "--max-attempts", type=parsing.count, metavar="N", help="after N failures it has failed"
    )


def database_problem(error: Exception) -> str:
    """Say in one sentence why the database did not answer as it should."""
    settings, state = connection.settings_dict, getattr(error.__cause__, "sqlstate", None)
    where = f"{settings['HOST'] or 'its socket'}:{settings['PORT'] or 5432}"
    if state == UNDEFINED_TABLE:
        return f"the database at {where} has no tables of Truebeat: run `manage.py migrate` first."
    if state is None and isinstance(error, OperationalError):
        return f"cannot reach the database at {where}: {error}"
    return f"the database at {where} refused: {error}"


def user_name() -> str:
    """Return who runs this command, by the operating system's name for them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def one_line(message: object) -> str:
    """Return a message as one line that cannot steer a terminal."""
    return printable(" ".join(str(message).split()))
