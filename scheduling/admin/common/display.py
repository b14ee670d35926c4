"""Shows instants, durations, states and texts in the same way on every page."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django import forms
from django.contrib.admin.widgets import AdminSplitDateTime
from django.db import models
from django.template.loader import render_to_string
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

from scheduling import clock

NOTHING = "-"
LONGEST_TEXT = 20_000
LINE = 100
UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def moment(instant: datetime | None) -> str:
    """Return the instant in TIME_ZONE, to the second, with the zone's name."""
    if instant is None:
        return NOTHING
    return clock.local(instant).strftime("%Y-%m-%d %H:%M:%S %Z")


class Moments(AdminSplitDateTime):
    """The boxes of an instant; at either end of time, where TIME_ZONE has no clocks, in UTC."""

    def decompress(self, value: Any) -> Any:
        if isinstance(value, str):  # an address can name a form's first values
            value = _read(value)
        if isinstance(value, datetime) and timezone.is_aware(value):
            value = timezone.make_naive(value, clock.local(value).tzinfo)
            return [value.date(), value.time()]
        return super().decompress(value)


def _read(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


# For an admin page's `formfield_overrides`.
MOMENTS: dict[Any, Any] = {
    models.DateTimeField: {"form_class": forms.SplitDateTimeField, "widget": Moments}
}


def span(length: timedelta) -> str:
    """Return a duration in its two largest units: "1 h 30 min", "2.41 s", "35 ms"."""
    seconds = abs(length.total_seconds())
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.2f} s"
    words, rest = [], int(seconds)
    for size, unit in UNITS:
        if rest >= size:
            words.append(f"{rest // size} {unit}")
            rest %= size
    return " ".join(words[:2])


def relative(instant: datetime, now: datetime) -> str:
    """Return how far an instant is from now: "in 5 min 2 s", "3 h 10 min ago"."""
    if abs(instant - now) < timedelta(seconds=1):
        return "now"
    return f"in {span(instant - now)}" if instant > now else f"{span(now - instant)} ago"


def when(instant: datetime | None, now: datetime) -> SafeString | str:
    """Return how far away an instant is, and below that the instant."""
    if instant is None:
        return NOTHING
    return format_html(
        '<time class="tb-when" datetime="{}">{}<br><span class="quiet">{}</span></time>',
        instant.isoformat(),
        relative(instant, now),
        moment(instant),
    )


def ago(instant: datetime | None, now: datetime) -> SafeString | str:
    """Return how far away an instant is; the instant itself is the tooltip."""
    if instant is None:
        return NOTHING
    return format_html(
        '<time class="tb-when" datetime="{}" title="{}">{}</time>',
        instant.isoformat(),
        moment(instant),
        relative(instant, now),
    )


def badge(kind: str, text: str) -> SafeString:
    """Return a coloured word; its colour adds no meaning."""
    return format_html('<span class="tb-badge tb-{}">{}</span>', kind, text)


def breakable(dotted: str) -> SafeString:
    """Return a dotted name that a narrow column may break after its dots."""
    return format_html_join(mark_safe(".<wbr>"), "{}", ((part,) for part in dotted.split(".")))


def block(text: Any) -> SafeString | str:
    """Return a long text as it was written, cut to a length that a page can show."""
    text = str(text or "")
    if len(text) > LONGEST_TEXT:
        text = f"{text[:LONGEST_TEXT]}\n… {len(text) - LONGEST_TEXT:,} more characters"
    return format_html('<pre class="tb-text">{}</pre>', text) if text else NOTHING


def failed_attempts(errors: Sequence[Mapping[str, Any]]) -> SafeString:
    """Return the failed attempts of a run: times, worker and traceback of each."""
    shown = [
        {
            **error,
            "started": moment(error.get("started_at")),
            "ended": moment(error.get("ended_at")),
            "text": block(error.get("traceback")) if error.get("traceback") else "",
        }
        for error in errors
    ]
    return render_to_string("admin/scheduling/run/attempts.html", {"attempts": shown})


def pretty(json_text: str) -> str:
    """Return a JSON text with line breaks if it is long; other texts stay as they are."""
    try:
        value = json.loads(json_text)
        line = json.dumps(value, ensure_ascii=False)
        return line if len(line) <= LINE else json.dumps(value, indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return json_text
