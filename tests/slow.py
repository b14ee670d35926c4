"""The slow tests, longest first: they are marked `slow` and start before the others.

pytest's xdist gives each of its workers a part of the collected list. Each part begins with its
share of the slow tests, so that no long test is left for the end, when other workers are idle.
Renew the list from `make test ARGS="--durations=80"`.
"""

import os
from itertools import islice

import pytest

# Files, functions, or directories that end with a slash. All tests with real processes are slow.
SLOW = (
    "tests/chaos/test_chaos.py",
    "tests/scheduling/beat/test_scheduler.py::TestTheCostOfNothing",
    "tests/scheduling/test_odd_rows.py",
    "tests/config/test_services.py",
    "tests/config/test_up.py",
    "tests/scheduling/management/test_migrating.py",
    "tests/scheduling/admin/test_odd_input.py",
    "tests/scheduling/runs/test_enqueueing.py::TestMany",
    "tests/system/",
    "tests/scheduling/beat/test_escalation.py::test_no_look_reads_the_backlog",
    "tests/scheduling/beat/test_scheduler.py::TestATick::test_more_repairs_than_a_batch_holds",
    "tests/scheduling/recurrence/test_calendars.py::TestLaws",
    "tests/scheduling/recurrence/test_laws.py",
    "tests/scheduling/beat/test_looking.py::TestANarrowLook::test_many_lanes",
    "tests/scheduling/beat/test_dispatch.py::test_looking_for_lanes",
    "tests/scheduling/history/test_backfilling.py::TestLettingGo::test_it_costs_no_look",
    "tests/config/test_keeper.py",
    "tests/config/test_settings.py",
    "tests/config/test_embedded.py",
    "tests/scheduling/recurrence/test_dialect.py::TestOracles",
)


def rank(node_id: str) -> int | None:
    """Return the place of a test among the slow ones, or None if the test is quick."""
    return next((place for place, start in enumerate(SLOW) if node_id.startswith(start)), None)


def arrange(items: list[pytest.Item]) -> None:
    """Mark the slow tests, and begin the part of each xdist worker with its share of them."""
    quick: list[pytest.Item] = []
    ranked: list[tuple[int, pytest.Item]] = []
    for item in items:
        place = rank(item.nodeid)
        if place is None:
            quick.append(item)
        else:
            item.add_marker("slow")
            ranked.append((place, item))
    slow = [item for _, item in sorted(ranked, key=lambda each: each[0])]
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    items[:] = dealt(slow, quick, workers)


def dealt(slow: list[pytest.Item], quick: list[pytest.Item], parts: int) -> list[pytest.Item]:
    """Return all tests in the order in which `parts` equal slices begin with slow tests.

    The slices are as long as those of xdist's `--dist worksteal`.
    """
    left = len(slow) + len(quick)
    rest, order = iter(quick), list[pytest.Item]()
    for part in range(parts):
        size = left // (parts - part)
        left -= size
        share = slow[part::parts]
        order += share
        order += islice(rest, max(size - len(share), 0))
    return [*order, *rest]
