"""Chords of runs: nested canvases, failures of their parts, and parts that are added later.

A worker's child in this process executes the runs. The jobs write to `heard`.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import chain, chord, current_app, group, states
from celery.exceptions import ChordError
from celery.result import AsyncResult
from django_celery_results.models import ChordCounter  # type: ignore[attr-defined]

from scheduling import clock
from scheduling.models import UNFINISHED, Run, State
from tests.jobs.canvas import (
    asked_eta,
    asked_priority,
    asked_priority_after_a_retry,
    fail,
    five,
    grows,
    hear,
    heard,
    plus,
    second_delivery,
    third_time,
    told,
    told_id,
    total,
)
from tests.scheduling.child import NOW, value_of, work

pytestmark = [
    pytest.mark.django_db(transaction=True),
    # Celery announces a later change of this setting for errbacks of chords.
    pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header"),
]


@pytest.fixture(autouse=True)
def _nothing_waits(canvas_redis: redis.Redis) -> Iterator[None]:
    yield
    assert not Run.objects.filter(state__in=UNFINISHED).exists()
    assert not ChordCounter.objects.exists()


class TestNested:
    def test_a_group_in_a_chain_in_a_group_is_waited_for(self) -> None:
        deep = chain(plus.s(10), group(plus.s(100), plus.s(200)))
        promised = chain(plus.s(1, 1), group(plus.s(1), deep), hear.s()).apply_async(**NOW)
        work()
        assert heard == [("heard", [3, [112, 212]])]
        assert value_of(promised) == [3, [112, 212]]

    def test_a_part_may_end_with_a_group_that_comes_last(self) -> None:
        part = chain(third_time.s(1), group(plus.s(1), third_time.s(), plus.s(3)))
        chord([part, plus.s(5, 5)], hear.s()).apply_async(**NOW)
        work()
        assert heard == [("heard", [[2, 1, 4], 10])]

    def test_chords_whose_bodies_are_groups(self) -> None:
        inner = chord([plus.s(1, 1), plus.s(2, 2)], group(total.s(), total.s()))
        chord([inner, plus.s(5, 5)], hear.s()).apply_async(**NOW)
        work()
        assert heard == [("heard", [[6, 6], 10])]

    def test_a_chord_in_a_chain_in_a_chord(self) -> None:
        part = chain(plus.s(1, 1), group(plus.s(1), plus.s(2)), total.s(), plus.s(1))
        promised = chord([part, chord([five.s()], hear.s())], hear.s()).apply_async(**NOW)
        work()
        assert heard == [("heard", [5]), ("heard", [8, [5]])]
        assert value_of(promised) == [8, [5]]

    def test_groups_all_the_way_down(self) -> None:
        canvas: Any = group(plus.s(n) for n in range(2))
        for _ in range(3):
            canvas = chain(five.si(), group(plus.s(1), chain(plus.s(2), canvas)))
        chord([canvas, five.s()], hear.s()).apply_async(**NOW)
        work()
        assert len(heard) == 1


class TestFailures:
    @pytest.mark.parametrize(
        "rest",
        [
            group(plus.s(1), plus.s(2)),
            chain(plus.s(1), group(plus.s(1), chain(plus.s(1), group(plus.s(1), plus.s(2))))),
            chord([plus.s(1), plus.s(2)], group(total.s(), total.s())),
            chord([plus.s(1)], chord([total.s(), total.s()], total.s())),
        ],
    )
    def test_a_part_that_fails_before_it_branches_fails_all_that_it_would_have_become(
        self, rest: Any
    ) -> None:
        promised = chord([chain(fail.s(), rest), plus.s(1, 1)], hear.s()).apply_async(**NOW)
        work()
        with pytest.raises(ChordError, match="no luck"):
            value_of(AsyncResult(promised.id))
        assert heard == []

    def test_a_step_that_fails_fails_the_group_after_it(self) -> None:
        promised: Any = chain(plus.s(1, 1), fail.s(), group(plus.s(1), plus.s(2))).apply_async(
            **NOW
        )
        work()
        assert [result.state for result in promised.results] == [states.FAILURE] * 2
        with pytest.raises(ValueError, match="no luck"):
            value_of(promised)

    def test_who_asks_afterwards_is_told_the_error_of_the_part(self) -> None:
        promised = chord([plus.s(1, 1), fail.s()], total.s()).apply_async(**NOW)
        work()
        with pytest.raises(ValueError, match="no luck"):
            value_of(promised)

    def test_who_waits_is_told_it_too_though_part_and_body_fail_between_two_looks(self) -> None:
        promised: Any = chord([plus.s(1, 1), fail.s()], total.s()).apply_async(**NOW)
        with pytest.raises(ValueError, match="no luck"):
            promised.get(
                timeout=1, interval=0.01, on_interval=lambda _: work(), disable_sync_subtasks=False
            )

    def test_the_error_of_the_body_names_the_innermost_part_that_failed(self) -> None:
        inner = chord([plus.s(1, 1), fail.s()], total.s())
        promised = chord([chord([inner, five.s()], total.s()), five.s()], total.s())
        ended = promised.apply_async(**NOW)
        work()
        failed_part = Run.objects.get(task=fail.name)
        with pytest.raises(ChordError, match=rf"Dependency {failed_part.pk} raised ValueError"):
            value_of(AsyncResult(ended.id))

    @pytest.mark.parametrize("levels", [1, 2, 4])
    @pytest.mark.parametrize("beside", [[], [plus.s(1, 1)]])
    def test_on_error_of_nested_chords_calls_its_errback_once(
        self, levels: int, beside: list[Any]
    ) -> None:
        canvas: Any = fail.s()
        for _ in range(levels):
            canvas = chord([canvas, *beside], total.s())
        promised = canvas.on_error(told_id.s()).apply_async(**NOW)
        work()
        assert heard == [("told", promised.id)]

    def test_each_of_nested_chords_may_have_an_errback_of_its_own(self) -> None:
        inner = chord([fail.s(), five.s()], total.s().on_error(told.s()))
        promised = chord([inner, five.s()], total.s().on_error(told_id.s())).apply_async(**NOW)
        work()
        assert [name for name, _ in heard] == ["told", "told"]
        assert ("told", promised.id) in heard

    def test_an_errback_of_a_body_that_is_a_chord_is_called(self) -> None:
        body = chord([total.s(), total.s()], total.s().on_error(told_id.s()))
        promised = chord([fail.s(), five.s()], body).apply_async(**NOW)
        work()
        assert heard == [("told", promised.id)]


class TestPartsThatComeLater:
    def test_a_job_may_add_parts_to_its_chord(self) -> None:
        promised = chord([grows.s([10, 20, 101]), plus.s(2, 2)], hear.s()).apply_async(**NOW)
        work()
        ((_, values),) = heard
        assert values[:2] == [1, 4]
        assert sorted(values[2:]) == [10, 20, 106]
        assert value_of(promised) == values

    def test_a_job_that_is_part_of_no_chord_cannot(self) -> None:
        promised = grows.apply_async(([10],), **NOW)
        work()
        assert Run.objects.get(pk=promised.id).state != State.SUCCEEDED
        Run.objects.filter(state__in=UNFINISHED).delete()


class TestPriorities:
    @pytest.mark.parametrize("priority", [0, 1, 5, 6, 8, 9])
    def test_a_job_is_told_the_priority_that_was_asked_for(self, priority: int) -> None:
        first = asked_priority.apply_async(priority=priority, **NOW)
        again = asked_priority_after_a_retry.apply_async(priority=priority, **NOW)
        step = chain(five.s(), asked_priority.s().set(priority=priority)).apply_async(**NOW)
        work()
        assert [value_of(each) for each in (first, again, step)] == [priority] * 3

    def test_a_step_that_inherits_it_inherits_what_was_asked_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(current_app.conf, "task_inherit_parent_priority", True)
        promised = chain(five.s(), asked_priority.s()).apply_async(priority=4, **NOW)
        work()
        assert value_of(promised) == 4


class TestDelays:
    def test_each_part_is_told_the_instant_it_was_asked_to_wait_for(self) -> None:
        later: Any = {"countdown": 0.001}
        (group(asked_eta.s(), asked_eta.s()) | hear.s()).apply_async(**later)
        asked_eta.apply_async(eta=clock.now())
        work()
        ((_, etas),) = heard
        parts = Run.objects.filter(task=asked_eta.name).order_by("id")
        assert etas == [part.due_at.isoformat() for part in parts[:2]]

    def test_a_call_without_a_delay_is_told_of_none(self) -> None:
        promised = asked_eta.apply_async(**NOW)
        work()
        assert value_of(promised) is None


def test_a_job_that_was_rejected_to_be_tried_again_is_told_so() -> None:
    promised = chord([second_delivery.s(), third_time.s("third")], hear.s()).apply_async(**NOW)
    work()
    Run.objects.filter(task=second_delivery.name).update(run_at=clock.now())
    work()
    assert value_of(promised) == ["second", "third"]
