"""Filters that never list or count a table: closed lists of choices, and text boxes."""

from collections.abc import Iterator
from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from scheduling.postgres.sql import clean
from scheduling.registry import job_names

LONGEST_NUMBER = 18  # digits; Python refuses to read thousands of them


class TextFilter(admin.SimpleListFilter):
    """A filter whose value can be any text of an address."""

    def value(self) -> str | None:
        text = super().value()
        return text and clean(text)


class InputFilter(TextFilter):
    """A filter with a box to type into, for columns with too many values to list."""

    template = "admin/scheduling/input_filter.html"
    placeholder = ""

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("", "")]  # Django leaves a filter without lookups out

    def choices(self, changelist: ChangeList) -> Iterator[Any]:
        name = self.parameter_name or ""
        others = changelist.get_filters_params()
        if changelist.query:
            others = {**others, "q": changelist.query}
        yield {
            "name": name,
            "value": self.value() or "",
            "placeholder": self.placeholder,
            "others": [
                (key, value)
                for key, values in others.items()
                if key != name
                for value in (values if isinstance(values, list) else [values])
            ],
            "clear": changelist.get_query_string(remove=[name]),
        }


class TaskFilter(TextFilter):
    """By task: lists the registered jobs, without a query."""

    title = "task"
    parameter_name = "task"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        names = job_names()
        asked = self.value()
        unknown = [asked] if asked and asked not in names else []
        return [(name, name) for name in (*names, *unknown)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Model]) -> QuerySet[Model]:
        return queryset.filter(task=self.value()) if self.value() else queryset
