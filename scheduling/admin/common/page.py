"""A page of a large table: bounded counts, rows read at one instant, links and columns."""

from datetime import datetime
from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from scheduling import clock
from scheduling.admin.common.display import moment
from scheduling.admin.common.paging import BoundedPaginator


class RowsSeen(ChangeList):
    """A list whose rows know the instant at which they were read: `seen_at`."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        rows, now = list(self.result_list), clock.now()
        for row in rows:
            row.seen_at = now
        self.result_list = rows


class Page(admin.ModelAdmin[Any]):
    """Counts no whole table, and sorts only by an index."""

    list_per_page = 50
    list_max_show_all = 200
    sortable_by: ClassVar[Any] = ()
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = BoundedPaginator

    class Media:
        css = {"all": ("scheduling/admin.css",)}  # noqa: RUF012 (as Django documents it)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return RowsSeen


def seen_at(row: Any) -> datetime:
    """Return the instant at which a row was read; a row's own page reads the clock here."""
    if not hasattr(row, "seen_at"):
        row.seen_at = clock.now()
    instant: datetime = row.seen_at
    return instant


def instant_column(field: str, words: str) -> Any:
    """Return a column that shows an instant of the row."""

    @admin.display(description=words)
    def shown(self: Any, row: Any) -> str:
        return moment(getattr(row, field))

    return shown


def link(model: str, key: Any, text: object = "") -> SafeString:
    """Return a link to the page of a row of the engine; its text is the key if none is given."""
    page = reverse(f"admin:scheduling_{model}_change", args=[key])
    return format_html('<a href="{}">{}</a>', page, text or key)
