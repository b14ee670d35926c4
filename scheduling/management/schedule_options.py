"""The options of the command `schedule`, and the requests that they make."""

from argparse import SUPPRESS, ArgumentParser
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from scheduling.management import parsing
from scheduling.models import CatchUp, ExcludedDay, Overlap, Priority
from scheduling.schedules.policies import POLICIES

# What `none` means for a policy that is never empty.
CLEARED: dict[str, Any] = {"spread": timedelta(0), "owner": ""}


def add_rule_options(parser: ArgumentParser, *, required: bool = True) -> None:
    """Add the options that say when; exactly one of them, or at most one."""
    rule = parser.add_mutually_exclusive_group(required=required)
    rule.add_argument("--cron", metavar='"m h dom mon dow"', help="both day fields must match")
    rule.add_argument("--every", type=parsing.duration, metavar="DURATION", help="90s 15m 2h 3d")
    rule.add_argument("--at", type=parsing.moment, metavar="ISO", help="once, then")
    rule.add_argument(
        "--in", type=parsing.duration, metavar="DURATION", dest="delay", help="once, so much later"
    )
    zone = "of --cron, by default TIME_ZONE" if required else "of --cron, or of the rule it has"
    parser.add_argument("--timezone", metavar="TZ", help=zone)
    start = parsing.moment if required else parsing.or_none(parsing.moment)
    parser.add_argument(
        "--start", type=start, metavar="ISO", help="the first is not before this",
        default=None if required else SUPPRESS,
    )  # fmt: skip
    end = parsing.moment_or_duration if required else parsing.or_none(parsing.moment_or_duration)
    parser.add_argument(
        "--expires", type=end, metavar="ISO|DURATION", dest="end",
        help="nothing is due after this", default=None if required else SUPPRESS,
    )  # fmt: skip


def add_policy_options(parser: ArgumentParser, *, clearable: bool = False) -> None:
    """Add an option for each policy; a clearable one takes `none`, and is left out if not given."""

    def option(name: str, text: str, read: Callable[[str], Any] | None = None, **more: Any) -> None:
        if clearable and read is not None:
            more["type"] = parsing.or_none(read)
        elif read is not None:
            more["type"] = read
        parser.add_argument(name, help=text, default=SUPPRESS if clearable else None, **more)

    length: dict[str, Any] = {"read": parsing.duration, "metavar": "DURATION"}
    option("--catch-up", "for what was missed", choices=CatchUp.values)
    option("--catch-up-window", "how far back; of catch-up none: what is in time", **length)
    option("--overlap", "while an earlier run is unfinished", choices=Overlap.values)
    option("--spread", "start up to this much later", **length)
    option("--deadline-after", "counted from due", **length)
    option("--calendar", "its days off are left out", read=str, metavar="NAME")
    option("--excluded-day", "what is due on a day off", choices=ExcludedDay.values)
    option(
        "--pause-after-failures", "pause it when N of its runs in a row have failed",
        read=parsing.count, metavar="N",
    )  # fmt: skip
    option(
        "--owner", "who is told of failures: mail addresses or https:// URLs, commas between",
        read=str, metavar="ADDRESSES",
    )  # fmt: skip


def add_edit_options(parser: ArgumentParser) -> None:
    """Add what `edit` can change; what is not given stays."""
    add_rule_options(parser, required=False)
    parser.add_argument("--task", metavar="TASK", default=SUPPRESS)
    json_array, json_object = parsing.json_array, parsing.json_object
    parser.add_argument(
        "--args", dest="task_args", type=json_array, default=SUPPRESS, metavar="JSON"
    )
    parser.add_argument(
        "--kwargs", dest="task_kwargs", type=json_object, default=SUPPRESS, metavar="JSON"
    )
    steps = [step.label for step in Priority]
    parser.add_argument("--priority", choices=[*steps, "none"], default=SUPPRESS)
    parser.add_argument("--queue", metavar="Q", type=parsing.or_none(str), default=SUPPRESS)
    parser.add_argument("--description", metavar="TEXT", default=SUPPRESS)
    parser.add_argument(
        "--max-attempts", type=parsing.or_none(parsing.count), metavar="N", default=SUPPRESS
    )
    add_policy_options(parser, clearable=True)
    parser.add_argument("--dry-run", action="store_true", help="say what it would change")


def add_backfill_options(parser: ArgumentParser) -> None:
    """Add the range of a backfill, and how it is to run."""
    parser.add_argument(
        "--from", type=parsing.moment, metavar="ISO", dest="since", required=True,
        help="the first instant, included",
    )  # fmt: skip
    parser.add_argument(
        "--to", type=parsing.moment, metavar="ISO", dest="until", required=True,
        help="the last instant, included",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="say what would run")
    parser.add_argument(
        "--again", action="store_true", help="also what has succeeded, or may still"
    )
    parser.add_argument(
        "--concurrency", type=parsing.count, default=1, metavar="N", help="at once, by default 1"
    )


def policy_asked(options: dict[str, Any]) -> dict[str, Any]:
    """Return the policies that the options of `add` ask for."""
    return {name: options[name] for name in POLICIES if options.get(name) is not None}


def policy_edited(options: dict[str, Any]) -> dict[str, Any]:
    """Return the policies that the options of `edit` change; `none` is the default."""
    given = {name: options[name] for name in POLICIES if name in options}
    return {name: CLEARED.get(name) if value is None else value for name, value in given.items()}
