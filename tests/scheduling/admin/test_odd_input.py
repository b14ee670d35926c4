"""Odd addresses and forms at every page of the admin: left out or refused, never a 500."""

from html.parser import HTMLParser
from itertools import cycle, islice
from typing import Any

import pytest
from django.contrib import admin
from django.db import connection, models, transaction
from django.test import Client
from django.urls import NoReverseMatch, reverse
from django_celery_beat.models import CrontabSchedule

from scheduling.admin.odd_input import NOT_ALL
from scheduling.schedules import calendars
from tests.scheduling.admin_pages import texts
from tests.scheduling.ledger import run, schedule

pytestmark = pytest.mark.django_db

PAGES = sorted(admin.site._registry, key=lambda model: model._meta.label)
each_page = pytest.mark.parametrize("model", PAGES, ids=lambda model: model._meta.label)
ODD_LOOKUPS = {
    "": "\0",
    "__exact": "1" + "0" * 30,
    "__in": "",
    "__gt": "9" * 5000,
    "__range": "0001-01-01",
    "__year": "1" + "0" * 30,
    "__lte": "9999-12-31 23:59:59",
    "__regex": "(((",
    "__contained_by": "[1",
    "__contains": "a\0b",
    "__isnull": "\0",
}
ODD_VALUES = (
    "\0", "-" + "1" + "0" * 30, "0001-01-01", "9999-12-31", "99999999 00:00:00", "é" * 5000,
    '["\\u0000"]',
)  # fmt: skip


def page_of(model: Any, page: str, *args: Any) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}", args=args)


def refused_or_ignored(send: Any, address: str, data: Any) -> bool:
    """Send a request in its own transaction; return whether the answer is not a server error."""
    with transaction.atomic():
        answer = send(address, data)
        transaction.set_rollback(True)
    return bool(answer.status_code in (200, 302, 400, 403, 405, 409))


class Fields(HTMLParser):
    """The data that a browser would send for the form of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sent: dict[str, str] = {}
        self._within = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        name, value = own.get("name") or "", own.get("value") or ""
        if tag == "option" and "selected" in own:
            self.sent[self._within] = value
        if not name or own.get("type") in ("submit", "button"):
            return
        if own.get("type") not in ("checkbox", "radio") or "checked" in own:
            self.sent[name] = value
        self._within = name if tag in ("select", "textarea") else ""

    def handle_data(self, data: str) -> None:
        if self._within in self.sent and self.lasttag == "textarea":
            self.sent[self._within] += data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("select", "textarea"):
            self._within = ""


@each_page
def test_odd_filters_are_ignored(admin_client: Client, model: Any) -> None:
    admin_client.raise_request_exception = False
    schedule()
    run()
    page = admin.site.get_model_admin(model)
    own: list[Any] = [entry for entry in page.list_filter if isinstance(entry, type)]
    names = ["q", "o", "p", "all", "e", *(entry.parameter_name for entry in own)]
    queries = [{name: value} for name in names for value in ("\0", "1" + "0" * 30)]
    # Not each with each, which takes minutes: each field with some, and each of them many times.
    odd = cycle(ODD_LOOKUPS.items())
    for field in model._meta.get_fields():
        queries += [{field.name: "\0"}]
        queries += [{f"{field.name}{lookup}": value} for lookup, value in islice(odd, 2)]
    address = page_of(model, "changelist")
    broken = [each for each in queries if not refused_or_ignored(admin_client.get, address, each)]
    assert not broken


@each_page
def test_odd_actions_are_refused(admin_client: Client, model: Any) -> None:
    admin_client.raise_request_exception = False
    address = page_of(model, "changelist")
    own = admin.site.get_model_admin(model).actions or ()
    forms = [
        {"action": action, "_selected_action": ["\0", "1" + "0" * 30], "index": "0"}
        for action in ("delete_selected", *own, "\0")
    ]
    broken = [form for form in forms if not refused_or_ignored(admin_client.post, address, form)]
    assert not broken


@each_page
def test_odd_addresses_of_rows_lead_nowhere(admin_client: Client, model: Any) -> None:
    admin_client.raise_request_exception = False
    address = page_of(model, "changelist")
    for key in ("%00", "1" + "0" * 30):
        for end in ("change/", "delete/", "history/"):
            assert admin_client.get(f"{address}{key}/{end}").status_code in (200, 302, 403, 404)
        assert admin_client.post(f"{address}{key}/act/pause/").status_code in (302, 403, 404)


@each_page
def test_odd_values_in_the_form_of_a_new_row_are_refused(admin_client: Client, model: Any) -> None:
    admin_client.raise_request_exception = False
    calendars.add("DE", by="ann", country="DE")
    try:
        address = page_of(model, "add")
    except NoReverseMatch:
        return
    page = admin_client.get(address)
    if page.status_code != 200:
        return
    fields = Fields(page.content.decode()).sent
    fields.pop("csrfmiddlewaretoken", None)
    forms = [{**fields, name: odd} for name, odd in zip(fields, cycle(ODD_VALUES), strict=False)]
    broken = [form for form in forms if not refused_or_ignored(admin_client.post, address, form)]
    assert not broken


@each_page
def test_odd_first_values_of_a_form_are_refused(admin_client: Client, model: Any) -> None:
    admin_client.raise_request_exception = False
    try:
        address = page_of(model, "add")
    except NoReverseMatch:
        return
    queries = [
        {field.name: odd}
        for field, odd in zip(model._meta.get_fields(), cycle(("x", "\0")), strict=False)
    ]
    broken = [each for each in queries if not refused_or_ignored(admin_client.get, address, each)]
    assert not broken


def test_a_form_may_begin_with_an_instant(admin_client: Client) -> None:
    page = reverse("admin:django_celery_beat_clockedschedule_add")
    shown = admin_client.get(page, {"clocked_time": "2087-03-01T12:30"}).content.decode()
    assert 'value="2087-03-01"' in shown
    assert 'value="12:30:00"' in shown
    assert admin_client.get(page, {"clocked_time": "soon"}).status_code == 200


def test_lone_surrogates_are_ignored(admin_client: Client) -> None:
    """UTF-8 cannot carry them, but a request can name another charset."""
    kind = {"content-type": "text/plain; charset=utf-7"}
    answer = admin_client.get("/admin/scheduling/schedule/?q=%2B2AA-", headers=kind)
    assert (answer.status_code, answer.headers["Location"]) == (
        302,
        "/admin/scheduling/schedule/?e=1",
    )


def test_a_user_of_an_odd_filter_sees_a_warning(admin_client: Client) -> None:
    schedule("all of them")
    answer = admin_client.get("/admin/scheduling/schedule/", {"name": "\0"}, follow=True)
    assert texts(answer) == [NOT_ALL]
    assert "all of them" in answer.content.decode()


def test_an_odd_word_in_a_box_that_finds_rules_is_refused(admin_client: Client) -> None:
    query = {"app_label": "scheduling", "model_name": "schedule", "field_name": "crontab"}
    answer = admin_client.get("/admin/autocomplete/", {**query, "term": "\0"})
    assert answer.status_code in (200, 400)


def test_a_session_that_no_text_can_hold_is_refused(client: Client) -> None:
    client.cookies["sessionid"] = "\0" * 32
    assert client.get("/admin/").status_code in (302, 400)


@pytest.mark.parametrize("field", ["minute", "day_of_week"])
def test_a_crontab_with_a_number_below_zero_is_refused(admin_client: Client, field: str) -> None:
    page = reverse("admin:django_celery_beat_crontabschedule_add")
    data = {"minute": "0", "hour": "5", "day_of_month": "*", "month_of_year": "*",
            "day_of_week": "1", "timezone": "UTC", field: "-1"}  # fmt: skip
    answer = admin_client.post(page, data)
    assert answer.status_code == 200
    assert "-1" in str(answer.context["errors"])


def test_the_list_of_crontabs_bears_one_that_cannot_be_read(admin_client: Client) -> None:
    CrontabSchedule.objects.bulk_create([CrontabSchedule(minute="-1", day_of_week="-1")])
    page = admin_client.get(reverse("admin:django_celery_beat_crontabschedule_changelist"))
    assert "this crontab cannot be read" in page.content.decode()


def test_the_second_of_two_users_who_save_the_same_name_gets_409(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second user's validation finds no such name yet; the unique index does."""
    calendars.add("DE", by="ann", country="DE")
    monkeypatch.setattr(models.Model, "validate_unique", lambda *args, **kwargs: None)
    data = {"name": "DE", "description": "", "weekdays": ["5"], "country": "", "subdivision": "",
            "dates-TOTAL_FORMS": "0", "dates-INITIAL_FORMS": "0"}  # fmt: skip
    with transaction.atomic():
        answer = admin_client.post(reverse("admin:scheduling_calendar_add"), data)
        connection.set_rollback(True)
    assert answer.status_code == 409
