"""Redirects django-celery-beat's own addresses of schedules to the page of schedules."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django_celery_beat import admin as stock
from django_celery_beat.models import PeriodicTask

from scheduling.admin.paging import BoundedPaginator
from scheduling.admin.schedules import ScheduleAdmin

admin.site.unregister(PeriodicTask)


@admin.register(PeriodicTask)
class PeriodicTaskAddresses(stock.PeriodicTaskAdmin):  # type: ignore[misc]
    """django-celery-beat's addresses, kept so that links and bookmarks lead to the schedules."""

    search_fields = ScheduleAdmin.search_fields
    paginator = BoundedPaginator
    actions = ()

    def has_module_permission(self, request: HttpRequest) -> bool:
        return False

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        return redirect("admin:scheduling_schedule_changelist")

    def changeform_view(
        self, request: HttpRequest, object_id: str | None = None, *args: Any, **kwargs: Any
    ) -> HttpResponse:
        if object_id is None:
            return redirect("admin:scheduling_schedule_add")
        return redirect("admin:scheduling_schedule_change", object_id)

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: Any = None
    ) -> HttpResponse:
        return redirect("admin:scheduling_schedule_delete", object_id)

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: Any = None
    ) -> HttpResponse:
        return redirect("admin:scheduling_schedule_history", object_id)
