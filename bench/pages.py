"""pages: the admin's pages over many schedules, as a browser's request sees them.

A real gunicorn with one worker, over HTTP, signed in. "Cold" is the first request of all to a
new process, which imports and compiles its code first; a page's figure is the median of its other
requests. The peer is django-celery-beat's own admin over the same rows.
"""

import argparse
import http.client
import socket
import time
from typing import NamedTuple

from bench.peers import DATABASE_SCHEDULER, TRUEBEAT, Peer
from bench.processes import Process
from bench.report import Sample, Table, load, row
from bench.schedules import TASK, Stock, store
from bench.testbed import BenchError, Testbed

SIZE = 200_000
CRONTABS = 20_000
LIMIT = 0.5  # the target, in seconds
SLOW = 3.0  # seconds after which a page is not asked for again

# Rules as people have them: many, and most schedules share one with few others.
CRONTABS_OF_MANY = """
INSERT INTO django_celery_beat_crontabschedule
    (minute, hour, day_of_month, month_of_year, day_of_week, timezone)
SELECT n %% 60, n / 60 %% 24, '*', n / 1440 %% 12 + 1, '*', 'UTC' FROM generate_series(1, %s) n
"""
SHARE_CRONTABS = """
UPDATE django_celery_beat_periodictask SET interval_id = NULL, crontab_id = id / 2 %% %s + 1
 WHERE id %% 2 = 0
"""
SOME_POLICIES = """
INSERT INTO scheduling_policy (schedule_id, owner, paused_at)
SELECT id, 'team ' || id % 100, CASE WHEN id % 1000 = 0 THEN now() END
  FROM django_celery_beat_periodictask WHERE id % 10 = 0
"""


class Page(NamedTuple):
    """A page of Truebeat's admin, and the peer's that answers the same question, if it has one."""

    name: str
    ours: str
    theirs: str | None


LIST, THEIR_LIST = "/admin/scheduling/schedule/", "/admin/django_celery_beat/periodictask/"
PAGES = (
    Page("list", LIST, THEIR_LIST),
    Page("list, its page 20", f"{LIST}?p=20", f"{THEIR_LIST}?p=10"),
    Page("search, one found", f"{LIST}?q=schedule+777777", f"{THEIR_LIST}?q=schedule+777777"),
    Page("search, none found", f"{LIST}?q=no+such+thing", f"{THEIR_LIST}?q=no+such+thing"),
    Page("search, all found", f"{LIST}?q=schedule", f"{THEIR_LIST}?q=schedule"),
    Page("only the enabled", f"{LIST}?status=enabled", f"{THEIR_LIST}?enabled__exact=1"),
    Page("only the disabled (none)", f"{LIST}?status=disabled", f"{THEIR_LIST}?enabled__exact=0"),
    Page("only the paused", f"{LIST}?status=paused", None),
    Page("due within an hour", f"{LIST}?next=hour", None),
    Page("of one task", f"{LIST}?task={TASK}", None),
    Page("of one owner", f"{LIST}?owner=team+50", None),
    Page("of the code (none)", f"{LIST}?managed_by=code", None),
    Page("of users", f"{LIST}?managed_by=user", None),
    Page("none planned (none)", f"{LIST}?next=none", None),
    Page("form", f"{LIST}500000/change/", f"{THEIR_LIST}500000/change/"),
    Page("form of a new one", f"{LIST}add/", f"{THEIR_LIST}add/"),
)
COLD = (PAGES[0], PAGES[-2])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=5, metavar="N",
                        help="requests of each page")  # fmt: skip


def measure(testbed: Testbed) -> Table:
    size = max(testbed.options.stored or [SIZE])
    _fill(testbed, size)
    cookie = _sign_in()
    cold = [row(f"{page.name}, cold", 2, most=LIMIT) for page in COLD]
    warm = [row(page.name, 2, most=LIMIT) for page in PAGES]
    peers = (TRUEBEAT, DATABASE_SCHEDULER)[: 1 + bool(testbed.options.peer_runs)]
    for column, peer in enumerate(peers):
        for page, line in zip(COLD, cold, strict=True):
            for _ in range(peer.runs(testbed)):
                with Web(testbed, peer, cookie, size) as web:
                    web.visit(page, line.samples[column])
            print(f"  {peer.name}, {page.name}, cold: {line.samples[column]}, {load()}", flush=True)
        for page, line in zip(PAGES, warm, strict=True):
            with Web(testbed, peer, cookie, size) as web:
                web.visit(page, Sample())
                for _ in range(testbed.options.requests):
                    web.visit(page, line.samples[column])
            print(f"  {peer.name}, {page.name}: {line.samples[column]}, {load()}", flush=True)
    title = f"The admin over {size:,} schedules, {CRONTABS:,} crontabs"
    return Table(title, ("Truebeat", "django-celery-beat"), [*cold, *warm])


def _fill(testbed: Testbed, size: int) -> None:
    """Store schedules that are due over the next two hours; half of them by crontab."""
    spread = Stock(size, every=7200, due=testbed.now() + 60, step=7200 / size)
    store(testbed, TRUEBEAT, spread)
    with testbed.without_triggers():
        testbed.run(CRONTABS_OF_MANY, CRONTABS)
        testbed.run(SHARE_CRONTABS, CRONTABS)
        testbed.run(SOME_POLICIES)
    testbed.settle()


def _sign_in() -> str:
    from django.contrib.auth.models import User
    from django.test import Client

    user, _ = User.objects.get_or_create(
        username="bench", defaults={"is_staff": True, "is_superuser": True}
    )
    client = Client()
    client.force_login(user)
    return client.cookies["sessionid"].OutputString(attrs=[])


class Web(Process):
    """A gunicorn that has just begun, and how long its pages take."""

    def __init__(self, testbed: Testbed, peer: Peer, cookie: str, size: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        self._peer, self._cookie, self._size = peer, cookie, size
        self._limit = peer.limit(testbed)
        wsgi = "config.wsgi" if peer.own else "bench.plain.wsgi"
        command = ["gunicorn", wsgi, "--bind", f"127.0.0.1:{self._port}", "--timeout", "300"]
        super().__init__(f"{peer.name}'s web", testbed, command,
                         DJANGO_SETTINGS_MODULE=peer.settings)  # fmt: skip
        if not self.wait_until(self._listens, 30, step=0.05):
            raise BenchError(f"{self.name} did not begin to listen.")
        time.sleep(1)  # its worker is forked, and loads the application

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def visit(self, page: Page, sample: Sample) -> None:
        """Request a page and add its time; a slow page is requested only once."""
        url = page.ours if self._peer.own else page.theirs
        if url is None or sample.gave_up or max(sample.values, default=0) > SLOW:
            return
        url = url.replace("500000", str(self._size // 2))
        seconds = self._get(url.replace("777777", str(self._size * 7 // 9)))
        sample.values.append(self._limit if seconds is None else seconds)
        if seconds is None:
            sample.gave_up.append("no answer")

    def _get(self, url: str) -> float | None:
        """Return the seconds until the whole page has come; None where the limit came first."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=self._limit)
        began = time.monotonic()
        try:
            headers = {"Cookie": self._cookie, "X-Forwarded-Proto": "https"}
            connection.request("GET", url, headers=headers)
            answer = connection.getresponse()
            answer.read()
        except TimeoutError:
            return None
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise BenchError(f"{self.name} answered {url} with {answer.status}.")
        return time.monotonic() - began
