"""Answers addresses and forms that Postgres or Python cannot read.

Django ignores a filter that it sees to be wrong. Others only fail once rows are asked for: a NUL in
a text, a number of thirty digits, a pattern whose brackets do not close.
"""

import logging
from collections.abc import Callable

from django.contrib import messages
from django.contrib.admin.views.main import ERROR_FLAG
from django.core.exceptions import ValidationError
from django.db import DataError, IntegrityError, ProgrammingError
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, HttpResponseRedirect

logger = logging.getLogger(__name__)

# What comes of values that nothing was made for; and, of a lookup, also these.
UNREADABLE = (DataError, ValueError, OverflowError, ValidationError)
UNREADABLE_FILTER = (*UNREADABLE, ProgrammingError, IndexError)
PLAIN = "text/plain; charset=utf-8"
NOT_ALL = "The filters of that address cannot be read: all are shown."
CLASH = (
    "Nothing was changed: somebody else has saved the like of it meanwhile. Go back, load the page "
    "again, and look at what is there."
)


class OddInput:
    """Middleware: leaves such filters out, as Django does, and refuses such forms with 400.

    What two users write at the same moment, and only one of them can have, is answered with 409.
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
            text = f"Nothing was changed: what was sent cannot be read. {_what(error)}"
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
