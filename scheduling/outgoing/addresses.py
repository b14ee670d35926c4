"""Mail addresses and https URLs of owners, as schedules and ALERTS_TO name them."""

import re
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ValidationError

from scheduling.outgoing.mail import address_problem

HOW = "give mail addresses or https:// URLs, separated by commas"
UNPRINTED = re.compile(r"[\x00-\x20\x7f-\x9f]")


def split(text: str) -> list[str]:
    """Return the addresses in a text, each once; separated by commas or white space."""
    return list(dict.fromkeys(word for word in re.split(r"[\s,]+", text) if word))


def is_url(address: str) -> bool:
    return "://" in address


def validate(text: str) -> None:
    """Raise ValidationError if a text has anything except mail addresses and URLs.

    An http:// URL is accepted if settings.ALERT_ALLOW_PRIVATE is on, for development.
    """
    for address in split(text):
        problem = _problem_of_url(address) if is_url(address) else address_problem(address)
        if problem:
            raise ValidationError(f"{address!r} {problem}: {HOW}.")


def _problem_of_url(address: str) -> str:
    schemes = ("https", "http") if settings.ALERT_ALLOW_PRIVATE else ("https",)
    try:
        url = urlsplit(address)
        host, _ = url.hostname, url.port
    except ValueError as error:
        return f"cannot be read ({error})"
    if url.scheme not in schemes:
        return f"begins with {url.scheme}://"
    if not host or not address.isascii() or UNPRINTED.search(address):
        return "is not a URL with a host"
    if url.username is not None or url.password is not None:
        return "has a user or a password in it"
    return ""
