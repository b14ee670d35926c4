"""The admin: pages on which operators look at the ledger and steer it.

Every page shows; every action calls one function of the core. Pages cost the same at ten and at a
million rows: nothing counts a whole table, and no form lists one.
"""

from django.contrib import admin

from scheduling.admin import (
    backfills,
    calendars,
    failures,
    old_addresses,
    results,
    rules,
    runs,
    schedules,
)

__all__ = [
    "backfills",
    "calendars",
    "failures",
    "old_addresses",
    "results",
    "rules",
    "runs",
    "schedules",
]

admin.site.site_title = "Truebeat"
admin.site.site_header = "Truebeat"
admin.site.index_title = "Schedules, runs and what they use"
