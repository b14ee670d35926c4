"""One POST to a URL that a user typed, for alerts."""

from urllib.parse import urlsplit

from scheduling.errors import PermanentError
from scheduling.outgoing import http

LIMITS = http.Limits(connect=5, whole=20, receives=0)

# Refusals that may pass: 408 and 425 ask for another try, 429 for patience.
PASSING = {408, 425, 429}


def post(url: str, body: bytes, headers: dict[str, str]) -> int:
    """POST a JSON body; return the status of a successful answer, from 200 to 299.

    Raises:
        PermanentError: the URL leads to no global address, or the server refuses for good.
        OSError: the failure may pass: no connection, a time-out, a 5xx answer.
    """
    headers = {"Content-Type": "application/json", **headers}
    status = http.request("POST", url, headers=headers, body=body, limits=LIMITS).status
    if 200 <= status < 300:
        return status
    said = f"{urlsplit(url).hostname} answered {status}"
    if status >= 500 or status < 300 or status in PASSING:
        raise OSError(said)
    if status < 400:
        raise PermanentError(f"{said}: redirects are not followed.")
    raise PermanentError(said)
