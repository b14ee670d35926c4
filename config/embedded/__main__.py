"""`python -m config.embedded up` and `python -m config.embedded run [--throwaway] -- COMMAND`."""

import argparse
import sys

from config.embedded import stack
from config.embedded.server import EmbeddedError


def main() -> int:
    arguments = _parser().parse_args()
    try:
        if arguments.action == "up":
            return stack.up()
        return stack.run(arguments.command, throwaway=arguments.throwaway)
    except EmbeddedError as error:
        print(f"truebeat: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m config.embedded", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("up", help="everything in one terminal, on the data in var/")
    run = actions.add_parser("run", help="one command, with PostgreSQL and Redis up")
    run.add_argument(
        "--throwaway", action="store_true", help="on empty services that are removed afterwards"
    )
    run.add_argument("command", nargs="+", metavar="COMMAND")
    return parser


if __name__ == "__main__":
    sys.exit(main())
