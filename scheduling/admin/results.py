"""The page of stored results, without filters that list every value of a column."""

from typing import Any, ClassVar

from django.contrib import admin
from django_celery_results import admin as stock
from django_celery_results.models import TaskResult

from scheduling.admin.common.paging import BoundedPaginator

admin.site.unregister(TaskResult)


@admin.register(TaskResult)
class TaskResultAdmin(stock.TaskResultAdmin):
    date_hierarchy: ClassVar[Any] = None
    list_filter: ClassVar[Any] = ("status", "date_done")
    ordering = ("-pk",)
    search_fields: ClassVar[Any] = ("=task_id",)
    search_help_text = "A run's id (Celery's task id)."
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = BoundedPaginator
