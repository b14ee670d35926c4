"""`manage.py secrets`: make a key, and encrypt stored secrets with the newest one."""

from argparse import ArgumentParser
from datetime import datetime
from typing import Any

from scheduling.management.command import LedgerCommand
from scheduling.outgoing import sealing
from triggers.rotation import rotate


class Command(LedgerCommand):
    """Keys of SECRETS_KEYS."""

    help = "Make a key for SECRETS_KEYS, and encrypt stored secrets with the newest one."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
        self.add_action(actions, "key", self.key, "print a new key")
        self.add_action(actions, "rotate", self.rotate, "encrypt all with the first of the keys")

    def handle(self, *args: Any, **options: Any) -> None:
        options["act"](options, None)

    def key(self, options: dict[str, Any], now: datetime | None) -> None:
        """Print a new key."""
        self.say(sealing.new_key())

    def rotate(self, options: dict[str, Any], now: datetime | None) -> None:
        """Encrypt all secrets with the newest key."""
        self.say(f"encrypted {rotate()} secrets with the first key of SECRETS_KEYS")
