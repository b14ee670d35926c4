"""When a worker has too much to do, and when not any more."""

from pathlib import Path

import pytest

from scheduling.celery_app.load_limits import limits, load_limit
from scheduling.workers.load_guard import excess, measure, memory_of_container

FIGURES = {"load": 0.5, "memory": 85.0, "cpu": 30.0}
NONE = {"load": 0.0, "memory": 0.0, "cpu": 0.0}


def test_without_limits_nothing_is_too_much() -> None:
    assert excess(FIGURES, NONE, closed=False) == ""
    assert limits() == NONE


def test_it_names_every_figure_above_its_limit() -> None:
    allowed = {"load": 0.4, "memory": 80.0, "cpu": 90.0}
    assert excess(FIGURES, allowed, closed=False) == (
        "load at 0.50, limit 0.4, memory at 85.00, limit 80"
    )


def test_a_closed_worker_opens_only_clearly_below_its_limit() -> None:
    allowed = NONE | {"memory": 90.0}
    assert excess(FIGURES, allowed, closed=False) == ""
    assert excess(FIGURES, allowed, closed=True) == "memory at 85.00, limit 90"
    assert excess(FIGURES | {"memory": 80.9}, allowed, closed=True) == ""


def test_it_measures_this_machine() -> None:
    figures = measure()
    assert figures.keys() == limits().keys()
    assert 0 < figures["memory"] < 100
    assert figures["load"] >= 0


@pytest.mark.parametrize(
    ("limit", "percent"), [("1000", 40.0), ("max", 0.0), ("0", 0.0), ("", 0.0)]
)
def test_the_memory_of_a_container_is_judged_by_its_own_limit(
    tmp_path: Path, limit: str, percent: float
) -> None:
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text("500\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 100\n")
    assert memory_of_container(tmp_path) == percent
    assert memory_of_container(tmp_path / "none") == 0


def test_a_limit_that_is_none_is_refused_by_name() -> None:
    assert "unknown figure 'disk'" in load_limit(None, "disk", 1)["error"]
    assert limits() == NONE
