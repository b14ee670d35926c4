"""The list of slow tests names tests that exist, and loses no test when it sorts them."""

from typing import Any

import pytest

from config.embedded.processes import ROOT
from tests import slow


@pytest.mark.parametrize("start", slow.SLOW)
def test_each_entry_names_a_test_that_exists(start: str) -> None:
    path, *names = start.split("::")
    assert (ROOT / path).exists(), f"Renew {start!r} in tests/slow.py."
    text = (ROOT / path).read_text() if names else ""
    assert all(f"class {name}" in text or f"def {name}" in text for name in names)


@pytest.mark.parametrize(("long", "quick", "parts"), [(5, 20, 3), (9, 1, 3), (0, 4, 2), (3, 0, 8)])
def test_each_slice_begins_with_its_share_and_no_test_is_lost(
    long: int, quick: int, parts: int
) -> None:
    slow_tests: list[Any] = [f"slow {number}" for number in range(long)]
    quick_tests: list[Any] = [f"quick {number}" for number in range(quick)]

    order: list[Any] = slow.dealt(slow_tests, quick_tests, parts)

    assert sorted(order) == sorted(slow_tests + quick_tests)
    if quick > long:
        firsts = {order[len(order) * part // parts] for part in range(parts)}
        assert firsts == set(slow_tests[:parts] or firsts)
