"""Replays all runs that match the list's filters, after a page that shows their number."""

from typing import Any

from django.contrib import messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse

from scheduling.admin.common.display import moment
from scheduling.admin.common.object_actions import EngineRows
from scheduling.admin.common.paging import MoreThan
from scheduling.history.replaying import find, replay_all
from scheduling.history.selecting import in_state
from scheduling.models import State

# In one request; a second request replays more.
MOST_AT_ONCE = 5_000


class ReplayAll(EngineRows):
    """A button on the list, for users who may operate runs; its page asks for confirmation.

    Without a chosen state, it replays failed runs.
    """

    change_list_template = "admin/scheduling/run/change_list.html"

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.replay_all_view)
        own = path("replay-all/", view, name=self._url_name("replay_all"))
        return [own, *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        may = {"may_replay": self.has_operate_permission(request)}
        return super().changelist_view(request, {**(extra_context or {}), **may})

    def replay_all_view(self, request: HttpRequest) -> HttpResponse:
        if not self.has_operate_permission(request):
            raise PermissionDenied
        try:
            runs = self._filtered(request)
        except IncorrectLookupParameters:
            return redirect(self._list())
        if runs is None:
            text = "Choose a filter first: a state, a task, a schedule or a time."
            self.message_user(request, text, messages.WARNING)
            return redirect(self._list())
        again = "again" in request.POST
        if request.method == "POST":
            return self._replay_all(request, runs, again=again)
        return self._ask(request, runs)

    def _filtered(self, request: HttpRequest) -> QuerySet[Any] | None:
        """Return the runs that the request's filters find; None without a filter."""
        changes = self.get_changelist_instance(request)
        filters = changes.get_filters_params()
        if not filters and not changes.query:
            return None
        runs: QuerySet[Any] = changes.queryset
        by_state = any(name.startswith("state") for name in filters) or changes.query
        return runs if by_state else runs.filter(in_state(State.FAILED))

    def _ask(self, request: HttpRequest, runs: QuerySet[Any]) -> HttpResponse:
        found = find(runs.order_by(), MOST_AT_ONCE + 1)
        fresh = found.runs - found.replayed
        many = max(fresh, found.replayed) > MOST_AT_ONCE
        context = {
            **self.admin_site.each_context(request),
            "title": "Replay all of these?",
            "opts": self.opts,
            "runs": MoreThan(MOST_AT_ONCE) if many else found.runs,
            "replayed": _said(found.replayed),
            "fresh": fresh,
            "most": MOST_AT_ONCE,
            "many": many,
            "first_due": moment(found.first_due),
            "last_due": moment(found.last_due),
            "conditions": request.GET.dict(),
            "list": f"{self._list()}?{request.GET.urlencode()}",
        }
        return TemplateResponse(request, "admin/scheduling/run/replay_all.html", context)

    def _replay_all(
        self, request: HttpRequest, runs: QuerySet[Any], *, again: bool
    ) -> HttpResponseRedirect:
        by = request.user.get_username()
        done = replay_all(runs, by=by, limit=MOST_AT_ONCE, again=again)
        text = f"Replayed {done.made:,} run{'' if done.made == 1 else 's'}."
        if done.tried > done.made:
            text += f" {done.tried - done.made:,} left out: an unfinished run has the same key."
        if done.parts:
            text += f" {done.parts:,} are parts of chords: a chord counts each part once."
        self.message_user(request, text, messages.SUCCESS if done.made else messages.WARNING)
        return redirect(f"{self._list()}?origin__exact=replay")

    def _list(self) -> str:
        return reverse(f"admin:{self._url_name('changelist')}")


def _said(count: int) -> int:
    return MoreThan(MOST_AT_ONCE) if count > MOST_AT_ONCE else count
