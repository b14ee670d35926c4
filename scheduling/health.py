"""`/healthz` and `manage.py health`, for load balancers, containers and monitors."""

import logging

from django.db import Error
from django.http import HttpRequest, JsonResponse

from scheduling.heartbeats import alive, shared_redis
from scheduling.postgres import snapshots

logger = logging.getLogger(__name__)

SERVICES = ("beat", "worker")


def healthz(request: HttpRequest) -> JsonResponse:
    """Answer 200 if the ledger answers and a beat and a worker were seen of late; else 503.

    The answer also names causes of slowness.
    """
    findings = check_services()
    status = 200 if set(findings.values()) == {"ok"} else 503
    return JsonResponse({**findings, **what_hurts()}, status=status)


def healthz_web(request: HttpRequest) -> JsonResponse:
    """Answer 200 if this web process can use the ledger, else 503; other services do not count."""
    database = check_services()["database"]
    return JsonResponse({"database": database}, status=200 if database == "ok" else 503)


def check_services(host: str = "") -> dict[str, str]:
    """Return "ok" or the fault of the database and of each service (on `host`, if given)."""
    try:
        found = alive(host)
    except Error:  # its text may name hosts and users: it goes to the log only
        logger.exception("health_unknown")
        return {"database": "cannot be read", **dict.fromkeys(SERVICES, "unknown")}
    where = f" on {host}" if host else ""
    return {
        "database": "ok",
        **{name: "ok" if name in found else f"none seen{where}" for name in SERVICES},
    }


def what_hurts() -> dict[str, str]:
    """Return in words why the ledger is slow or hints go astray; empty if neither is so."""
    try:
        snapshot, shared = snapshots.that_hurts(), shared_redis()
    except Error:
        logger.exception("health_unknown")
        return {}
    found = {"oldest_snapshot": str(snapshot) if snapshot else "", "redis": shared}
    return {what: words for what, words in found.items() if words}
