"""The page of runs: read the history of every occurrence and job; cancel and replay."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django_celery_results.models import TaskResult

from scheduling.admin.common.display import (
    NOTHING,
    ago,
    badge,
    block,
    breakable,
    failed_attempts,
    moment,
    pretty,
    span,
    when,
)
from scheduling.admin.common.page import RowsSeen, instant_column, link, seen_at
from scheduling.admin.runs.filters import (
    DueFilter,
    OriginFilter,
    RunTaskFilter,
    ScheduleFilter,
    StateFilter,
)
from scheduling.admin.runs.replay_all import ReplayAll
from scheduling.execution.cancelling import cancel
from scheduling.history.replaying import replay
from scheduling.models import FINAL, UNFINISHED, WAITING, Run, State
from scheduling.registry import attempts_allowed
from scheduling.runs.follow_ups import in_words
from scheduling.runs.outcomes import errors_of

NO_TIME = timedelta(0)


class RunList(RowsSeen):
    """Leaves out columns that can be large."""

    def get_queryset(self, request: HttpRequest, *args: Any) -> QuerySet[Any]:
        queryset: QuerySet[Any] = super().get_queryset(request, *args)
        return queryset.defer("args", "kwargs", "options", "errors", "follow_ups")


@admin.register(Run)
class RunAdmin(ReplayAll):
    """Users cannot edit runs; users who may change runs can cancel and replay them."""

    change_form_template = "admin/scheduling/run/change_form.html"
    list_display = (
        "short_id", "work", "state_", "due", "start", "duration", "attempt_and_worker",
    )  # fmt: skip
    list_filter = (
        ("state", StateFilter), DueFilter, ScheduleFilter, RunTaskFilter, ("origin", OriginFilter),
    )  # fmt: skip
    # Ids sort by their time: the newest runs come first.
    ordering = ("-pk",)
    search_fields = ("pk",)
    search_help_text = (
        "A run's id (Celery's task id). The filters on the right find runs in other ways."
    )
    actions = ("cancel", "replay")
    buttons = ("cancel", "replay")
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("state_", "attempt_", "worker"),
                    "reason",
                    ("task", "schedule", "origin"),
                )
            },
        ),
        (
            "When",
            {
                "fields": (
                    ("due", "may_start", "lateness"),
                    ("started", "finished", "duration"),
                    ("deadline_", "expires", "lease"),
                    ("made", "queued"),
                )
            },
        ),
        ("Errors", {"fields": ("attempts",)}),
        ("Result", {"fields": ("result",)}),
        ("Arguments", {"fields": ("arguments", "keywords", "options_")}),
        (
            "Origin",
            {
                "fields": (
                    ("id", "enqueued_by", "replay_of_", "backfill"),
                    ("queue", "priority", "unique_key"),
                    ("coalesced_", "cancel_requested_by", "sets_off"),
                )
            },
        ),
    )

    # --- The list ---------------------------------------------------------------------------------

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return RunList

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        if not search_term.strip():
            return queryset, False
        try:
            return queryset.filter(pk=UUID(search_term.strip())), False
        except ValueError:
            return queryset.none(), False

    @admin.display(description="run")
    def short_id(self, run: Run) -> SafeString:
        return format_html('<code class="tb-when" title="{}">…{}</code>', run.pk, str(run.pk)[-8:])

    @admin.display(description="task and schedule")
    def work(self, run: Run) -> SafeString:
        return format_html("{}<br>{}", breakable(run.task), self.schedule(run))

    @admin.display(description="started")
    def start(self, run: Run) -> SafeString:
        started, late = ago(run.started_at, seen_at(run)), self.lateness(run)
        if late == NOTHING:
            return format_html("{}", started)
        return format_html('{}<br><span class="quiet">late by {}</span>', started, late)

    @admin.display(description="attempt, worker")
    def attempt_and_worker(self, run: Run) -> SafeString:
        worker = breakable(run.worker)
        return format_html('{}<br><span class="quiet">{}</span>', self.attempt_(run), worker)

    @admin.display(description="schedule")
    def schedule(self, run: Run) -> SafeString | str:
        if run.schedule_id is None:
            return NOTHING
        return link("schedule", run.schedule_id, run.schedule_name)

    @admin.display(description="state")
    def state_(self, run: Run) -> SafeString:
        words = run.get_state_display()
        if run.state == State.RUNNING and run.cancel_requested_by:
            words = f"{words}, cancel asked for"
        return badge(run.state, words)

    @admin.display(description="due")
    def due(self, run: Run) -> SafeString | str:
        return when(run.due_at, seen_at(run))

    @admin.display(description="late by")
    def lateness(self, run: Run) -> str:
        """The time from `run_at` to the start."""
        if run.started_at is not None:
            return span(max(run.started_at - run.run_at, NO_TIME))
        overdue = seen_at(run) - run.run_at
        return f"{span(overdue)} so far" if run.state in WAITING and overdue > NO_TIME else NOTHING

    @admin.display(description="took")
    def duration(self, run: Run) -> str:
        if run.started_at is None:
            return NOTHING
        if run.finished_at is None:
            return f"{span(seen_at(run) - run.started_at)} so far"
        return span(run.finished_at - run.started_at)

    @admin.display(description="attempt")
    def attempt_(self, run: Run) -> str:
        allowed = attempts_allowed(run.task, run.max_attempts)
        # A hand-back starts another attempt without a failure, so attempts can exceed the limit.
        return f"{run.attempt} of {max(allowed, run.attempt)}" if allowed else str(run.attempt)

    # --- The page of one run ----------------------------------------------------------------------

    may_start = instant_column("run_at", "may start at")
    started = instant_column("started_at", "started")
    finished = instant_column("finished_at", "finished")
    expires = instant_column("expires_at", "expires")
    made = instant_column("created_at", "written")
    queued = instant_column("queued_at", "queued")

    @admin.display(description="should start by")
    def deadline_(self, run: Run) -> str:
        missed = "" if run.late_by is None else f", missed by {span(run.late_by)}"
        return f"{moment(run.deadline)}{missed}"

    @admin.display(description="lease until")
    def lease(self, run: Run) -> str:
        return moment(run.lease_expires_at) if run.state == State.RUNNING else NOTHING

    @admin.display(description="stands for")
    def coalesced_(self, run: Run) -> str:
        return (
            f"itself and {run.coalesced:,} that were missed after it" if run.coalesced else "itself"
        )

    @admin.display(description="replay of")
    def replay_of_(self, run: Run) -> SafeString | str:
        return link("run", run.replay_of) if run.replay_of else NOTHING

    @admin.display(description="sets off")
    def sets_off(self, run: Run) -> str:
        return in_words(run.follow_ups) or NOTHING

    @admin.display(description="backfill")
    def backfill(self, run: Run) -> SafeString | str:
        if run.backfill_id is None:
            return NOTHING
        return link("backfill", run.backfill_id)

    @admin.display(description="arguments")
    def arguments(self, run: Run) -> SafeString | str:
        return block(pretty(run.args))

    @admin.display(description="keyword arguments")
    def keywords(self, run: Run) -> SafeString | str:
        return block(pretty(run.kwargs))

    @admin.display(description="message options")
    def options_(self, run: Run) -> SafeString | str:
        return block("" if run.options == "{}" else pretty(run.options))

    @admin.display(description="failed attempts")
    def attempts(self, run: Run) -> SafeString | str:
        return failed_attempts(errors_of(run)) if run.errors else "none"

    @admin.display(description="stored result")
    def result(self, run: Run) -> SafeString | str:
        stored = TaskResult.objects.filter(task_id=str(run.pk)).first()
        if stored is None:
            return "none stored"
        return format_html("{}{}", stored.status, block(pretty(stored.result or "")))

    # --- Actions ----------------------------------------------------------------------------------

    def called(self, obj: Any) -> str:
        return str(obj.task)

    def offers(self, obj: Any, name: str) -> bool:
        return obj.state in (UNFINISHED if name == "cancel" else FINAL)

    @admin.action(description="Cancel", permissions=["operate"])
    def cancel(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        by = request.user.get_username()

        def cancel_one(run: Run) -> str:
            cancelled = cancel(run.pk, by=by).state == State.CANCELLED
            did = "Cancelled" if cancelled else "Asked its worker to stop it"
            self._show(request, run, did)
            return did

        self.for_each(request, queryset, cancel_one)

    @admin.action(description="Replay", permissions=["operate"])
    def replay(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        by = request.user.get_username()

        def replay_one(run: Run) -> str:
            new = replay(run.pk, by=by)
            left_out = "".join(f"; not repeated: {follow_up}" for follow_up in new.left_out)
            self._show(request, run, format_html("Replayed as {}{}", link("run", new.pk), left_out))
            return f"Replayed as {new.pk}"

        self.for_each(request, queryset, replay_one)

    def _show(self, request: HttpRequest, run: Run, did: str) -> None:
        text = format_html("{}: {} ({}).", did, link("run", run.pk), run.task)
        self.message_user(request, text, messages.SUCCESS)
