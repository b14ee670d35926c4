"""The admin: pages on which operators look at the ledger and steer it.

Every page shows; every action calls one function of the core. Pages cost the same at ten and at a
million rows: nothing counts a whole table, and no form lists one.
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

# Schedules are periodic tasks: they have one page, which is ours.
admin.site.unregister(PeriodicTask)
admin.site.site_title = "Truebeat"
admin.site.site_header = "Truebeat"
admin.site.index_title = "Schedules, runs and what they use"
