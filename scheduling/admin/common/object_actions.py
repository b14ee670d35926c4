"""Actions on rows: from the list for many rows, and as buttons on the page of one."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from django.contrib import messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.shortcuts import redirect
from django.urls import URLPattern, path

from scheduling.admin.common.page import Page
from scheduling.errors import SchedulingError

# Each object takes a call of the core, so more of them belong into a script.
MOST_AT_ONCE = 100


class ObjectActions(Page):
    """A page with `buttons` on each object's page: some of the list's actions.

    A user who must not call an action in the list neither sees nor can press its button.
    """

    buttons: ClassVar[tuple[str, ...]] = ()

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.act_view)
        own = path("<path:object_id>/act/<slug:name>/", view, name=self._url_name("act"))
        return [own, *super().get_urls()]

    def act_view(self, request: HttpRequest, object_id: str, name: str) -> HttpResponse:
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        if name not in self._allowed_buttons(request):
            raise PermissionDenied
        found = self.get_object(request, unquote(object_id))
        if found is None:
            raise Http404
        getattr(self, name)(request, self.get_queryset(request).filter(pk=found.pk))
        return redirect(f"admin:{self._url_name('change')}", quote(found.pk))

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        if (obj := kwargs.get("obj")) is not None:
            allowed = self._allowed_buttons(request).items()
            context["buttons"] = [button for button in allowed if self.offers(obj, button[0])]
        return super().render_change_form(request, context, *args, **kwargs)

    def offers(self, obj: Any, name: str) -> bool:
        """Return whether an action makes sense in the object's present state."""
        return True

    def called(self, obj: Any) -> str:
        """Return how a message names the object."""
        return str(obj)

    def for_each(
        self, request: HttpRequest, queryset: QuerySet[Any], act: Callable[[Any], str]
    ) -> int:
        """Call `act` for each row, log the text that it returns, and show its refusals.

        Returns:
            The number of rows for which `act` returned a text.
        """
        rows = list(queryset[: MOST_AT_ONCE + 1])
        if self.refuse_too_many(request, rows, MOST_AT_ONCE):
            return 0
        done = 0
        for row in rows:
            try:
                said = act(row)
            except SchedulingError as error:
                self.message_user(request, f"{self.called(row)}: {error}", messages.ERROR)
                continue
            if said:
                self.log(request, [row], said)
                done += 1
        return done

    def refuse_too_many(self, request: HttpRequest, rows: Sequence[Any], limit: int) -> bool:
        if len(rows) > limit:
            text = f"Nothing was done: more than {limit:,} rows are selected. Select fewer."
            self.message_user(request, text, messages.ERROR)
        return len(rows) > limit

    def log(self, request: HttpRequest, rows: Sequence[Any], text: str) -> None:
        """Add an entry to the history of each row."""
        user: Any = request.user.pk
        LogEntry.objects.log_actions(
            user_id=user, queryset=rows, action_flag=CHANGE, change_message=text.strip()
        )

    def _allowed_buttons(self, request: HttpRequest) -> dict[str, str]:
        """Return the buttons that the user may press, with their words."""
        actions: dict[str, Any] = self.get_actions(request)
        return {name: actions[name][2] for name in self.buttons if name in actions}

    def _url_name(self, page: str) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}_{page}"


class EngineRows(ObjectActions):
    """A page of rows that only the engine writes. Users who may change them can call its actions.

    The actions require the permission "operate".
    """

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(f"scheduling.change_{self.opts.model_name}")
