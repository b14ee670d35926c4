"""Placeholders such as `${run_id}` in URLs, headers and JSON: their names and their values.

The syntax is `string.Template`'s. A value is never read as a template, and no placeholder reads an
attribute.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from string import Template
from typing import Any

FACTS = ("run_id", "schedule", "due_at", "due_local", "run_at", "attempt", "now")
NAME = r"[a-zA-Z][_a-zA-Z0-9]*"
FAMILIES = ("args", "fields", "secrets")  # args.NAME, fields.NAME, secrets.NAME


class PlaceholderError(ValueError):
    """A placeholder that cannot be used, in words that name it."""


class _Text(Template):
    # Names with any number of dots, so that `${args.a.b}` is read, and refused, as a whole.
    idpattern = r"(?a:[_a-z][_a-z0-9]*(?:\.[_a-z0-9]+)*)"


def names_in(text: str) -> list[str]:
    """Return the names of the placeholders in a text.

    Raises:
        PlaceholderError: a `$` that begins no placeholder.
    """
    template = _Text(text)
    if not template.is_valid():
        raise PlaceholderError("a $ begins no placeholder: write $$ for a dollar sign")
    return template.get_identifiers()


def check(text: str, families: tuple[str, ...]) -> None:
    """Refuse placeholders that are unknown.

    Raises:
        PlaceholderError: it names the placeholder.
    """
    for name in names_in(text):
        family, dot, rest = name.partition(".")
        if name in FACTS or (dot and family in families and re.fullmatch(NAME, rest)):
            continue
        known = (*FACTS, *(f"{each}.NAME" for each in families))
        raise PlaceholderError(f"${{{name}}} is not known: there are {', '.join(known)}")


def fill_text(
    text: str, values: Mapping[str, Any], write: Callable[[str, str], str] = lambda _, value: value
) -> str:
    """Return the text with its placeholders filled in; `write` gets each name and its text.

    Raises:
        PlaceholderError: a value is missing.
    """
    found = {name: write(name, as_text(_value(name, values))) for name in names_in(text)}
    return _Text(text).substitute(found)


def fill(value: Any, values: Mapping[str, Any]) -> Any:
    """Return JSON with the placeholders in its texts filled in.

    A text that is one placeholder becomes its value, of any type.

    Raises:
        PlaceholderError: a value is missing.
    """
    if isinstance(value, dict):
        return {key: fill(each, values) for key, each in value.items()}
    if isinstance(value, list):
        return [fill(each, values) for each in value]
    if not isinstance(value, str):
        return value
    whole = _Text.pattern.fullmatch(value)
    if whole and (name := whole["named"] or whole["braced"]):
        return _value(name, values)
    return fill_text(value, values)


def texts_in(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Yield the place and the text of each leaf of JSON that is a text: `body.items[0].name`."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from texts_in(each, f"{place}.{key}")
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from texts_in(each, f"{place}[{number}]")
    elif isinstance(value, str):
        yield place, value


def as_text(value: Any) -> str:
    """Return a value as it stands within a text: "" for null, JSON for lists and objects."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _value(name: str, values: Mapping[str, Any]) -> Any:
    if name not in values:
        raise PlaceholderError(f"${{{name}}} has no value")
    return values[name]
