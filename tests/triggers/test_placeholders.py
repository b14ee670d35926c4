"""Placeholders: their names, and the places of their values."""

from datetime import UTC, datetime
from typing import Any, ClassVar

import pytest
from django.core.exceptions import ValidationError

from triggers import definitions, placeholders
from triggers.definitions import Definition, Kind
from triggers.placeholders import PlaceholderError
from triggers.requests import Facts, build

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
URL = "https://example.org/"


def built(definition: Definition, secrets: dict[str, str] | None = None, **args: Any) -> Any:
    values = {"schedule": None, "attempt": 2, **{f"args.{k}": v for k, v in args.items()}}
    facts = Facts(values, "run-1", "", "2026-11-20T12:00:00Z", 2)
    return build(definition, facts, secrets or {}, [], NOON)


@pytest.mark.parametrize(
    ("value", "filled"),
    [
        ("$attempt", 2),
        ("${args.list}", [1, "two"]),
        ("${schedule}", None),
        ("try $attempt of ${args.list}", 'try 2 of [1, "two"]'),
        ("from '${schedule}'", "from ''"),
        ("5 $$", "5 $"),
        ({"a": ["$attempt", 7, True, None]}, {"a": [2, 7, True, None]}),
        ("${args.quote}", 'say "$attempt" \\ ${run_id}'),
    ],
)
def test_a_leaf_that_is_one_placeholder_keeps_its_type(value: Any, filled: Any) -> None:
    args = {"list": [1, "two"], "quote": 'say "$attempt" \\ ${run_id}'}
    values = {"schedule": None, "attempt": 2, **{f"args.{k}": v for k, v in args.items()}}
    assert placeholders.fill(value, values) == filled


@pytest.mark.parametrize(
    "text",
    ["${run_id.__class__}", "$run_id.__class__", "${args.a.b}", "${args.__class__}", "${args}",
     "${secret}", "$run_idx", "${os.environ}", "${}", "cost: $", "${args.a[0]}", "${fields.a}"],
)  # fmt: skip
def test_unknown_names_and_attributes_are_refused_with_their_place(text: str) -> None:
    with pytest.raises(ValidationError, match=r"^\['body\.items\[1\]\.name: "):
        definitions.check(Definition(url=URL, body={"items": [1, {"name": text}]}))


@pytest.mark.parametrize(
    ("value", "url"),
    [
        (
            "a b/c?d&e=f#g",
            "https://example.org/a%20b%2Fc%3Fd%26e%3Df%23g?q=a%20b%2Fc%3Fd%26e%3Df%23g",
        ),
        ("ü", "https://example.org/%C3%BC?q=%C3%BC"),
        (7, "https://example.org/7?q=7"),
    ],
)
def test_a_value_in_a_url_stays_in_its_place(value: Any, url: str) -> None:
    request = built(Definition(url=f"{URL}${{args.x}}?q=${{args.x}}"), x=value)
    assert request.url == url


@pytest.mark.parametrize("value", ["..", "."])
def test_a_value_cannot_climb_in_the_path(value: str) -> None:
    with pytest.raises(PlaceholderError, match=r"segment \. or \.\."):
        built(Definition(url=f"{URL}a/${{args.x}}/b"), x=value)


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\x00", "tab\t", "ü"])
def test_a_value_cannot_write_headers(value: str) -> None:
    with pytest.raises(PlaceholderError, match=r"^headers\.X-A: "):
        built(Definition(url=URL, headers={"X-A": "${args.x}"}), x=value)


def test_a_missing_value_is_named() -> None:
    with pytest.raises(PlaceholderError, match=r"\$\{args\.city\} has no value"):
        built(Definition(url=URL, body="${args.city}"))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"url": "ftp://example.org"}, "url: begin with https:// or http://"),
        ({"url": "https://${args.host}/"}, "url: the host and the port cannot have"),
        ({"url": "https://a:b@example.org/"}, "url: give a user and a password in a header"),
        ({"url": "https://example.org/#part"}, "url: take out the part after #"),
        ({"url": "https://example.org:x/"}, "url: .* cannot be read"),
        ({"headers": {"Host": "x"}}, "headers.Host: Truebeat sets"),
        ({"headers": {"Webhook-Id": "x"}}, "headers.Webhook-Id: Truebeat sets"),
        ({"headers": {"a b": "x"}}, "headers: 'a b' is not a header's name"),
        ({"headers": {"A": "x\ny"}}, "headers.A: the value has a control character"),
        ({"kind": Kind.MESSAGE, "url": "redis://h/0"}, "routing_key: a message needs"),
        ({"kind": Kind.MESSAGE, "url": "redis://:pw@h/0", "routing_key": "q"}, "url: write"),
    ],
)  # fmt: skip
def test_what_cannot_be_sent_is_refused_when_saved(changes: Any, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        definitions.check(Definition(**{"url": URL, **changes}))


class TestTemplates:
    FIELDS: ClassVar[dict[str, Any]] = {
        "text": {"type": "text", "default": "Run $run_id"},
        "n": {"type": "number"},
    }
    PARTS: ClassVar[dict[str, Any]] = {
        "url": URL,
        "body": {"text": "${fields.text}!", "n": "${fields.n}"},
    }

    def test_a_trigger_fills_the_fields_in_which_may_have_placeholders(self) -> None:
        made = definitions.filled("http", self.FIELDS, self.PARTS, {"n": 3})
        assert made.body == {"text": "Run $run_id!", "n": 3}

    @pytest.mark.parametrize(
        ("given", "problem"),
        [
            ({}, "fields.n: the template needs it"),
            ({"n": "3"}, "fields.n: '3' is not a number"),
            ({"n": True}, "fields.n: True is not a number"),
            ({"n": 3, "m": 4}, "the template has no m"),
        ],
    )
    def test_fields_that_do_not_fit_are_refused(self, given: Any, problem: str) -> None:
        with pytest.raises(ValidationError, match=problem):
            definitions.filled("http", self.FIELDS, self.PARTS, given)

    @pytest.mark.parametrize(
        ("fields", "parts", "problem"),
        [
            ({}, {"url": URL, "body": "${fields.x}"}, r"\$\{fields.x\} is not among the fields"),
            ({"x": {"type": "date"}}, {"url": URL}, "fields.x: give its type"),
            ({"x": {"type": "number", "default": ""}}, {"url": URL}, "is not a number"),
            ({"x y": {"type": "text"}}, {"url": URL}, "'x y' is not a name"),
            ({}, {"url": URL, "colour": 1}, "colour is not a part"),
            ({}, {"url": URL, "method": "BREW"}, "method: 'BREW'"),
            ([], {"url": URL}, "must be JSON objects"),
        ],
    )  # fmt: skip
    def test_a_template_that_makes_no_trigger_is_refused(
        self, fields: Any, parts: Any, problem: str
    ) -> None:
        with pytest.raises(ValidationError, match=problem):
            definitions.check_template("http", fields, parts)
