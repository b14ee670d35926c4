"""The way to the ledger is cut while runs are at work, and is back before their leases end."""

import time
from collections import Counter
from pathlib import Path

import pytest

from chaos.network import MANNERS, Proxy
from scheduling.jobs import Call, enqueue_many
from scheduling.models import Run, State
from tests.jobs import tasks
from tests.system.processes import System
from tests.waiting import wait_for

LEASE = "15"  # seconds


def count(evidence: Path, word: str) -> int:
    return sum(line.startswith(word) for line in evidence.read_text().splitlines())


def all_ended() -> bool:
    return not Run.objects.exclude(state=State.SUCCEEDED).exists()


@pytest.mark.parametrize(
    ("manner", "pool"), [*((manner, "prefork") for manner in MANNERS), ("deaf", "threads")]
)
def test_what_runs_while_the_way_to_the_ledger_is_cut_ends_once(
    system: System, evidence: Path, manner: str, pool: str
) -> None:
    system.env["RUN_LEASE_SECONDS"] = LEASE
    system.beat()
    with Proxy.before(system.env["DATABASE_URL"]) as proxy:
        worker = system.ready_worker(3, "--pool", pool, DATABASE_URL=proxy.url)
        enqueue_many(tasks.sleep, (Call((str(evidence), 1)) for _ in range(3)))
        wait_for(lambda: count(evidence, "start") == 3, timeout=20)
        proxy.cut_off(manner)
        mended_at = time.monotonic() + 4  # their ends are lost again and again, and the next claims
        enqueue_many(tasks.write, (Call((str(evidence), f"later {n}")) for n in range(10)))
        wait_for(lambda: count(evidence, "end") == 3, timeout=10)
        wait_for(lambda: time.monotonic() > mended_at)
        assert count(evidence, "later") == 0
        proxy.mend()
        wait_for(all_ended, timeout=10)
    assert Counter(Run.objects.values_list("attempt", "failures")) == {(1, 0): 13}
    assert [count(evidence, word) for word in ("start", "end", "later")] == [3, 3, 10]
    assert not worker.said("worker_restarts")
