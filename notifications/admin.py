"""The admin pages: lifecycle ids and lead times to edit, deliveries to read."""

from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html

from notifications.dates import Today, today
from notifications.models import Delivery, DeliveryState, LifecycleId, Reminder

NOBODY = "-"


class ExpiryFilter(admin.SimpleListFilter):
    title = "expiry"
    parameter_name = "expires"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        soon = [(str(days), f"within {days} days") for days in (7, 30, 60)]
        return [("expired", "expired"), *soon, ("later", "later")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        if value not in dict(self.lookups(request, None)):
            return queryset
        now = today()
        if value == "expired":
            return queryset.filter(expires_on__lt=now)
        if value == "later":
            return queryset.filter(expires_on__gt=now + timedelta(days=60))
        return queryset.filter(expires_on__range=(now, now + timedelta(days=int(value))))


class StateFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return list(DeliveryState.choices)

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        value = self.value()
        return queryset.in_state(value) if value in DeliveryState.values else queryset


class DeliveryColumns:
    """Columns of a delivery, for the list of deliveries and the page of a lifecycle id."""

    @admin.display(description="state")
    def state(self, delivery: Any) -> str:
        return str(DeliveryState(delivery.state).label)

    @admin.display(description="why")
    def why(self, delivery: Any) -> str:
        if delivery.state in (DeliveryState.SENT, DeliveryState.SUPERSEDED):
            return str(delivery.superseded_because)
        return str(delivery.run_reason if delivery.run_state else "its run is gone")

    @admin.display(description="run")
    def run(self, delivery: Any) -> str:
        if delivery.run_state is None:
            return NOBODY
        url = reverse("admin:scheduling_run_change", args=[delivery.run_id])
        return format_html('<a href="{}">{}</a>', url, delivery.run_id)


class ReadOnly:
    """Rows that only the sweep and the runs of deliveries write."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class DeliveryInline(ReadOnly, DeliveryColumns, admin.TabularInline[Delivery, LifecycleId]):
    model = Delivery
    extra = 0
    fields = ("expires_on", "reminder", "state", "recipient", "sent_at", "why", "run")
    readonly_fields = fields
    ordering = ("-id",)

    def get_queryset(self, request: HttpRequest) -> Any:
        return Delivery.objects.with_state().select_related("reminder")


@admin.register(LifecycleId)
class LifecycleIdAdmin(admin.ModelAdmin[LifecycleId]):
    list_display = ("lcid", "name", "expires_on", "days_left", "requester_email", "status")
    list_filter = ("status", ExpiryFilter)
    search_fields = ("lcid", "name", "requester_email")
    # Sorted by an indexed column; by any other column on a click.
    ordering = ("lcid",)
    show_full_result_count = False
    inlines = (DeliveryInline,)

    def get_queryset(self, request: HttpRequest) -> QuerySet[LifecycleId]:
        return super().get_queryset(request).annotate(today=Today())

    @admin.display(description="days left", ordering="expires_on")
    def days_left(self, record: Any) -> str:
        days = (record.expires_on - record.today).days
        return str(days) if days >= 0 else "expired"

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        # Deliveries know the record by it.
        return ("lcid",) if obj else ()


@admin.register(Reminder)
class ReminderAdmin(admin.ModelAdmin[Reminder]):
    list_display = ("days_before", "enabled")
    # Without the bulk deletion, which would list every delivery of a lead time.
    actions = None

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        # A sent delivery names its lead time: another lead time is another row.
        return ("days_before",) if obj else ()

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        used = obj is not None and Delivery.objects.filter(reminder=obj).exists()
        return not used and super().has_delete_permission(request, obj)


@admin.register(Delivery)
class DeliveryAdmin(ReadOnly, DeliveryColumns, admin.ModelAdmin[Delivery]):
    list_display = (
        "id", "lifecycle_id", "expires_on", "reminder", "state", "recipient", "sent_at", "why",
        "run",
    )  # fmt: skip
    list_filter = (StateFilter, "reminder", "created_at", "sent_at")
    search_fields = ("=record__lcid", "=recipient")
    ordering = ("-id",)
    show_full_result_count = False
    list_select_related = ("reminder",)
    fields = (
        "lifecycle_id", "expires_on", "reminder", "state", "recipient", "created_at", "sent_at",
        "superseded_at", "why", "run",
    )  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> Any:
        return Delivery.objects.with_state()

    @admin.display(description="lifecycle id", ordering="record_id")
    def lifecycle_id(self, delivery: Delivery) -> str:
        # Its text, not the record, which may be deleted.
        return delivery.record_id
