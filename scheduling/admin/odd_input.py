"""Answers addresses and forms that Postgres or Python cannot read.

Django ignores a wrong filter if it notices the error. Other filters fail only when rows are read: a
NUL in a text, a number of thirty digits, a pattern with an open bracket.
"""

import logging
from collections.abc import Callable

from django.contrib import messages
from django.contrib.admin.views.main import ERROR_FLAG
from django.core.exceptions import ValidationError
from django.db import DataError, IntegrityError, ProgrammingError
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, HttpResponseRedirect

logger = logging.getLogger(__name__)

# The exceptions that unreadable values cause; the last three come from lookups.
UNREADABLE = (DataError, ValueError, OverflowError, ValidationError)
UNREADABLE_FILTER = (*UNREADABLE, ProgrammingError, IndexError, TypeError)
PLAIN = "text/plain; charset=utf-8"
NOT_ALL = "The filters of this address cannot be read: all rows are shown."
CLASH = (
    "Nothing was changed: another user has just saved a row with the same name or key. Go back, "
    "load the page again, and compare."
)


class OddInput:
    """Middleware: ignores unreadable filters, as Django does; answers unreadable forms with 400.

    If two users save the same unique value at the same moment, the second gets 409.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self._get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        page = request.resolver_match
        if page is None or page.app_name != "admin":
            return None
        asked = request.GET.keys() - {ERROR_FLAG}
        is_list = (page.url_name or "").endswith("_changelist")
        if is_list and asked and isinstance(error, UNREADABLE_FILTER):
            _log(request, error)
            messages.warning(request, NOT_ALL)
            return HttpResponseRedirect(f"{request.path}?{ERROR_FLAG}=1")
        sent = asked or request.method == "POST"
        if isinstance(error, DataError) or (sent and isinstance(error, UNREADABLE)):
            _log(request, error)
            text = f"Nothing was changed: a value that was sent cannot be read. {_what(error)}"
            return HttpResponseBadRequest(text, content_type=PLAIN)
        if isinstance(error, IntegrityError):
            _log(request, error)
            return HttpResponse(CLASH, status=409, content_type=PLAIN)
        return None


def _log(request: HttpRequest, error: Exception) -> None:
    fields = {"path": request.path, "error": _what(error)}
    logger.warning("odd_input_refused", extra={"fields": fields}, exc_info=error)


def _what(error: Exception) -> str:
    first = str(error).partition("\n")[0].encode("utf-8", "backslashreplace").decode()
    return f"{type(error).__name__}: {first}"
