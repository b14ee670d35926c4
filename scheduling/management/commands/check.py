"""`manage.py check`: Django's command, which also checks the ledger here.

Django checks a database only if `--database` names it. But only the ledger shows schedules and runs
of unknown tasks.
"""

from typing import Any

from django.core.management.commands import check
from django.db import Error, connection


class Command(check.Command):
    def handle(self, *app_labels: Any, **options: Any) -> None:
        options["databases"] = options["databases"] or self._ledger()
        super().handle(*app_labels, **options)

    def _ledger(self) -> list[str]:
        """Return the ledger's alias if the ledger can be reached."""
        try:
            connection.ensure_connection()
        except Error as error:
            self.stderr.write(f"The ledger was not checked: {error}")
            return []
        return ["default"]
