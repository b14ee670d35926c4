"""The page of backfills: look at the runs of a range of the past, and cancel them together."""

from typing import Any

from django.contrib import admin, messages
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString

from scheduling.admin.common.display import NOTHING, badge, moment
from scheduling.admin.common.object_actions import EngineRows
from scheduling.admin.common.page import instant_column, link
from scheduling.history import backfilling
from scheduling.models import UNFINISHED, Backfill, Run, State

COLOURS = {"going on": "running", "being cancelled": "paused", "cancelled": "cancelled"}


@admin.register(Backfill)
class BackfillAdmin(EngineRows):
    """`schedule backfill` starts a backfill; users who may change backfills can cancel it."""

    change_form_template = "admin/scheduling/run/change_form.html"
    list_display = ("schedule_name", "from_", "to", "run_count", "state", "asked")
    ordering = ("-pk",)
    search_fields = ("schedule_name__contains",)
    search_help_text = "A part of the schedule's name. Upper and lower case count."
    actions = ("cancel",)
    buttons = ("cancel",)
    fields = (
        ("schedule", "state"),
        ("from_", "to"),
        ("run_count", "concurrency"),
        "runs",
        ("asked", "cancelled"),
        "id",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        left = Run.objects.filter(backfill_id=OuterRef("pk"), state__in=UNFINISHED)
        rows: QuerySet[Any] = super().get_queryset(request).annotate(unfinished=Exists(left))
        return rows

    @admin.display(description="schedule")
    def schedule(self, backfill: Backfill) -> SafeString:
        return link("schedule", backfill.schedule_id, backfill.schedule_name)

    from_ = instant_column("since", "from")
    to = instant_column("until", "to")

    @admin.display(description="state")
    def state(self, backfill: Any) -> SafeString:
        word = backfilling.word(backfill, unfinished=backfill.unfinished)
        return badge(COLOURS.get(word, "succeeded"), word)

    @admin.display(description="started")
    def asked(self, backfill: Backfill) -> str:
        return f"{moment(backfill.created_at)} by {backfill.created_by}"

    @admin.display(description="cancelled")
    def cancelled(self, backfill: Backfill) -> str:
        if backfill.cancelled_at is None:
            return NOTHING
        return f"{moment(backfill.cancelled_at)} by {backfill.cancelled_by}"

    @admin.display(description="its runs")
    def runs(self, backfill: Backfill) -> SafeString:
        page = reverse("admin:scheduling_run_changelist")
        of_schedule = urlencode({"schedule": backfill.schedule_name, "origin__exact": "backfill"})
        words = str(backfilling.progress(backfill))
        return format_html('{} (<a href="{}?{}">show</a>)', words, page, of_schedule)

    def called(self, obj: Any) -> str:
        return str(obj.schedule_name)

    def offers(self, obj: Any, name: str) -> bool:
        return bool(obj.unfinished)

    @admin.action(description="Cancel", permissions=["operate"])
    def cancel(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        by = request.user.get_username()

        def cancel_one(backfill: Backfill) -> str:
            left = backfilling.cancel(backfill.pk, by=by)
            running = left.states.get(State.RUNNING, 0)
            asked = f"; {running} running ones were asked to stop" if running else ""
            text = f"Cancelled the backfill of {backfill.schedule_name}{asked}."
            self.message_user(request, text, messages.SUCCESS)
            return f"Cancelled{asked}"

        self.for_each(request, queryset, cancel_one)
