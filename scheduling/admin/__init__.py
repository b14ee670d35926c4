"""The admin: pages on which operators look at the ledger and steer it.

Each action calls one function of the core. A page costs the same at ten and at a million rows: it
never counts a whole table, and no form lists one.
"""

from django.contrib import admin
from django_celery_beat.models import PeriodicTask

import scheduling.admin.backfills
import scheduling.admin.calendars
import scheduling.admin.failures
import scheduling.admin.results
import scheduling.admin.rules
import scheduling.admin.runs.page
import scheduling.admin.schedules.page  # noqa: F401 (each registers its pages)

# A schedule is a periodic task; our page of schedules is its only page.
admin.site.unregister(PeriodicTask)
admin.site.site_title = "Truebeat"
admin.site.site_header = "Truebeat"
admin.site.index_title = "Schedules, runs, and the rules and calendars of schedules"
