"""The options of the command `schedule`, and the requests that they make."""

from argparse import SUPPRESS, ArgumentParser
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from scheduling.management import parsing
from scheduling.models import CatchUp, ExcludedDay, Overlap, Priority
from scheduling.schedules.policies import POLICIES

# The value that `none` stands for, of policies that are never empty.
CLEARED: dict[str, Any] = {"spread": timedelta(0), "owner": ""}


def add_rule_options(parser: ArgumentParser, *, required: bool = True) -> None:
    """Add the options of the rule: users give exactly one of them, or at most one."""
    rule = parser.add_mutually_exclusive_group(required=required)
    rule.add_argument("--cron", metavar='"m h dom mon dow"', help="both day fields must match")
    rule.add_argument("--every", type=parsing.duration, metavar="DURATION", help="90s 15m 2h 3d")
    rule.add_argument("--at", type=parsing.moment, metavar="ISO", help="once, at this time")
    rule.add_argument(
        "--in",
        type=parsing.duration,
        metavar="DURATION",
        dest="delay",
        help="once, this much later",
    )
    zone = "of --cron; by default TIME_ZONE" if required else "of --cron, or of its present rule"
    parser.add_argument("--timezone", metavar="TZ", help=zone)
    start = parsing.moment if required else parsing.or_none(parsing.moment)
    parser.add_argument(
        "--start", type=start, metavar="ISO", help="no occurrence is before this",
        default=None if required else SUPPRESS,
    )  # fmt: skip
    end = parsing.moment_or_duration if required else parsing.or_none(parsing.moment_or_duration)
    parser.add_argument(
        "--expires", type=end, metavar="ISO|DURATION", dest="end",
        help="no occurrence is after this", default=None if required else SUPPRESS,
    )  # fmt: skip


def add_policy_options(parser: ArgumentParser, *, clearable: bool = False) -> None:
    """Add an option for each policy. A clearable option takes `none` too, and has no default."""

    def option(name: str, text: str, read: Callable[[str], Any] | None = None, **more: Any) -> None:
        if clearable and read is not None:
            more["type"] = parsing.or_none(read)
        elif read is not None:
            more["type"] = read
        parser.add_argument(name, help=text, default=SUPPRESS if clearable else None, **more)

    length: dict[str, Any] = {"read": parsing.duration, "metavar": "DURATION"}
    option("--catch-up", "how missed occurrences are made up for", choices=CatchUp.values)
    option(
        "--catch-up-window", "catch-up all: how far back; none: how late is still in time", **length
    )
    option(
        "--overlap",
        "while an earlier run is unfinished; queue: the new run is held",
        choices=Overlap.values,
    )
    option("--spread", "start up to this much later", **length)
    option("--deadline-after", "a run should start this long after it is due", **length)
    option("--calendar", "a calendar, on whose days off it does not run", read=str, metavar="NAME")
    option("--excluded-day", "where an occurrence on a day off goes", choices=ExcludedDay.values)
    option(
        "--pause-after-failures", "pause it after N failed runs in a row",
        read=parsing.count, metavar="N",
    )  # fmt: skip
    option(
        "--owner", "notified of failures: mail addresses or https:// URLs, separated by commas",
        read=str, metavar="ADDRESSES",
    )  # fmt: skip


def add_edit_options(parser: ArgumentParser) -> None:
    """Add the options of `edit`: values that are not given stay."""
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
    parser.add_argument("--dry-run", action="store_true", help="only print the changes")


def add_backfill_options(parser: ArgumentParser) -> None:
    """Add the range of a backfill, and its limits."""
    parser.add_argument(
        "--from", type=parsing.moment, metavar="ISO", dest="since", required=True,
        help="the first instant, included",
    )  # fmt: skip
    parser.add_argument(
        "--to", type=parsing.moment, metavar="ISO", dest="until", required=True,
        help="the last instant, included",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true", help="only print which occurrences would run"
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="also occurrences whose run has succeeded or is unfinished",
    )
    parser.add_argument(
        "--concurrency",
        type=parsing.count,
        default=1,
        metavar="N",
        help="how many run at once; by default 1",
    )


def policy_asked(options: dict[str, Any]) -> dict[str, Any]:
    """Return the policies that the options of `add` name."""
    return {name: options[name] for name in POLICIES if options.get(name) is not None}


def policy_edited(options: dict[str, Any]) -> dict[str, Any]:
    """Return the policies that the options of `edit` change; `none` is the default."""
    given = {name: options[name] for name in POLICIES if name in options}
    return {name: CLEARED.get(name) if value is None else value for name, value in given.items()}
