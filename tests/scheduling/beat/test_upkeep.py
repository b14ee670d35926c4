"""The thread that compares plans with schedules leaves time to the ticks."""

import threading
import time

import pytest

from scheduling.beat import upkeep


def test_it_rests_until_due_schedules_have_been_fired() -> None:
    fired = threading.Event()
    resting = upkeep.Resting(lambda: not fired.is_set())
    threading.Timer(0.3, fired.set).start()
    begun = time.monotonic()
    resting()
    assert fired.is_set()
    assert time.monotonic() - begun >= 0.3


def test_a_beat_that_is_always_busy_does_not_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "BUSY_MAX", 0.1)
    begun = time.monotonic()
    upkeep.Resting(lambda: True)()
    assert time.monotonic() - begun < 5
