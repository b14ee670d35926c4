"""`manage.py health [beat|worker] [--here]`: exit 0 if all is well; for container checks."""

import os
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from scheduling.health import SERVICES, check_services, what_hurts


class Command(BaseCommand):
    help = (
        "Print the state of database, beat and worker, and anything that slows them. Exit 0 if"
        " all of them work, or the named service does; else 1."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "service", nargs="?", choices=SERVICES, help="look at this service only"
        )
        parser.add_argument("--here", action="store_true", help="count services of this host only")

    def handle(self, *args: Any, service: str | None, here: bool, **options: Any) -> None:
        findings = check_services(os.uname().nodename if here else "")
        wanted = ("database", service) if service else tuple(findings)
        for name in wanted:
            self.stdout.write(f"{name}: {findings[name]}")
        for name, words in what_hurts().items():
            self.stdout.write(f"{name}: {words}")
        if any(findings[name] != "ok" for name in wanted):
            sys.exit(1)
