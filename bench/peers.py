"""The measured systems: Truebeat, and the schedulers and result backends of today."""

from typing import NamedTuple

from bench.processes import Process
from bench.testbed import Testbed


class Peer(NamedTuple):
    """A scheduler for `celery beat`. `timed` is the same one with a clock on its ticks."""

    name: str
    app: str
    scheduler: str
    timed: str = ""

    @property
    def own(self) -> bool:
        return self is TRUEBEAT

    @property
    def settings(self) -> str:
        return "bench.settings" if self.app == OWN_APP else "bench.plain.settings"

    def limit(self, testbed: Testbed) -> float:
        """Return the seconds after which this peer is not waited for."""
        return float(testbed.options.limit if self.own else testbed.options.peer_limit)

    def runs(self, testbed: Testbed) -> int:
        return int(testbed.options.runs if self.own else testbed.options.peer_runs)


OWN_APP, PLAIN_APP = "config", "bench.plain.app"
TRUEBEAT = Peer("Truebeat", OWN_APP, "scheduling.beat:Scheduler", "bench.timed:Truebeat")
DATABASE_SCHEDULER = Peer(
    "DatabaseScheduler", PLAIN_APP, "django", timed="bench.plain.ticks:Database"
)
REDBEAT = Peer("celery-redbeat", PLAIN_APP, "redbeat.RedBeatScheduler")


def beat(
    peer: Peer, testbed: Testbed, *options: str, timed: bool = False, **env: str | int
) -> Process:
    """Start `celery beat`."""
    scheduler = peer.timed if timed else peer.scheduler
    command = ["celery", "-A", peer.app, "beat", "--scheduler", scheduler, *options]
    return Process(f"{peer.name}'s beat", testbed, command, **_environment(peer.settings, env))


def worker(
    app: str, testbed: Testbed, *options: str, concurrency: int = 4, **env: str | int
) -> Process:
    """Start `celery worker`."""
    settings = "bench.settings" if app == OWN_APP else "bench.plain.settings"
    command = ["celery", "-A", app, "worker", "-c", str(concurrency), "--loglevel", "WARNING",
               "--without-mingle", "--without-gossip", *options]  # fmt: skip
    return Process(f"{app}'s worker", testbed, command, **_environment(settings, env))


def _environment(settings: str, env: dict[str, str | int]) -> dict[str, str]:
    return {name: str(value) for name, value in env.items()} | {
        "DJANGO_SETTINGS_MODULE": settings,
        "CELERY_SKIP_CHECKS": "1",
    }
