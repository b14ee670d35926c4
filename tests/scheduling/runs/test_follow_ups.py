"""Links, chains, groups, chords, errbacks and replacements of runs: Celery's words, in the ledger.

A worker's child in this process executes the runs. The jobs write to `heard`.
"""

from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import redis
from celery import chain, chord, current_app, group, states
from celery.exceptions import ChordError
from celery.result import AsyncResult, GroupResult
from django.db import DataError, OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django_celery_results.models import (  # type: ignore[attr-defined]
    ChordCounter,
    TaskResult,
)
from pytest_django import Settings

from scheduling import clock
from scheduling.beat.lost_leases import recover_lost_leases
from scheduling.execution.cancelling import cancel
from scheduling.execution.closing import expire_waiting
from scheduling.execution.finishing import finish
from scheduling.history.repeats import CHORD, SENT
from scheduling.history.replaying import replay, replay_all
from scheduling.ids import uuid7
from scheduling.models import UNFINISHED, Origin, Run, State
from scheduling.runs import follow_ups
from scheduling.runs.enqueueing import Call, enqueue, enqueue_many
from scheduling.runs.outcomes import Outcome, failed_attempt
from tests.jobs.canvas import (
    becomes,
    end,
    fail,
    fail_quietly,
    five,
    hear,
    heard,
    leave,
    look,
    plus,
    quiet,
    said,
    third_time,
    told,
    told_after_a_retry,
    told_at_the_second_try,
    told_id,
    told_more,
    total,
)
from tests.scheduling.child import NOW, deliver, hint, value_of, work
from tests.scheduling.ledger import in_thread, run, second_connection

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("canvas_redis"),
    # Celery announces a later change of this setting for errbacks of chords.
    pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header"),
]


def row(promised: Any) -> Run:
    return Run.objects.get(pk=promised.id)


def all_final() -> bool:
    return not Run.objects.filter(state__in=UNFINISHED).exists()


class TestLinks:
    def test_a_link_is_called_with_the_result(self) -> None:
        promised: Any = plus.apply_async((1, 2), link=hear.s(), **NOW)
        assert row(promised).follow_ups
        (first, second) = work()
        assert heard == [("heard", 3)]
        follower = Run.objects.get(pk=second.pk)
        assert (follower.origin, follower.follows, follower.state) == (
            Origin.FOLLOW_UP, first.pk, State.SUCCEEDED,
        )  # fmt: skip
        assert follower.enqueued_by == f"run {first.pk}"
        assert value_of(promised) == 3
        assert [child.id for child in promised.children] == [str(follower.pk)]

    def test_several_links_are_all_called_and_may_have_options(self) -> None:
        links = [hear.s(), said.si("second"), plus.s(1).set(queue="other", countdown=60)]
        plus.apply_async((1, 2), link=links, **NOW)
        work()
        assert sorted(heard) == [("heard", 3), ("said", "second")]
        later = Run.objects.get(queue="other")
        assert later.args == "[3, 1]"
        assert later.run_at > clock.now()

    @pytest.mark.parametrize(("inherits", "priority"), [(True, 3), (False, 6)])
    def test_it_has_the_priority_of_what_it_follows_where_celery_is_told_so(
        self, inherits: bool, priority: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(current_app.conf, "task_inherit_parent_priority", inherits)
        chain(plus.s(1, 2), hear.s()).apply_async(priority=3, link=said.si("x"), **NOW)
        Run.objects.update(priority=9, given_priority=3)  # as a retry leaves it
        work()
        followers = Run.objects.filter(origin=Origin.FOLLOW_UP)
        assert set(followers.values_list("priority", flat=True)) == {priority}

    def test_a_link_may_be_a_canvas(self) -> None:
        links = [chain(plus.s(1), hear.s()), group(plus.s(2), plus.s(3))]
        plus.apply_async((1, 2), link=links, **NOW)
        work()
        assert heard == [("heard", 4)]
        assert sorted(result.result for result in TaskResult.objects.all()) == list("34456")

    def test_a_failure_calls_no_link(self) -> None:
        fail.apply_async(link=hear.s(), **NOW)
        work()
        assert (heard, Run.objects.count()) == ([], 1)

    def test_it_goes_out_with_the_attempt_that_succeeds(self) -> None:
        promised = third_time.apply_async((7,), link=hear.s(), link_error=told_id.s(), **NOW)
        work()
        assert (heard, row(promised).attempt) == ([("heard", 7)], 3)

    def test_a_result_that_is_ignored_is_passed_on_all_the_same(self) -> None:
        promised = quiet.apply_async((8,), link=hear.s(), **NOW)
        work()
        assert heard == [("heard", 8)]
        assert not TaskResult.objects.filter(task_id=promised.id).exists()

    def test_a_link_that_does_not_fit_fails_the_run_and_sends_nothing_else(self) -> None:
        promised = five.apply_async(link=[hear.s(), plus.s(1, 2, 3)], link_error=told_id.s(), **NOW)
        work()
        after = row(promised)
        assert after.state == State.FAILED
        assert "follow-up tests.jobs.canvas.plus cannot be sent" in after.reason
        assert heard == [("told", promised.id)]
        with pytest.raises(Exception, match="cannot be sent"):
            value_of(promised)

    @pytest.mark.parametrize("kind", [list, tuple, iter])
    def test_what_is_enqueued_has_links_too(self, kind: Any) -> None:
        made = enqueue(plus, (1, 2), link=kind([hear.s(), said.si("second")]))
        work()
        assert sorted(heard) == [("heard", 3), ("said", "second")]
        assert Run.objects.filter(follows=made.pk, origin=Origin.FOLLOW_UP).count() == 2

    def test_what_is_enqueued_may_have_a_canvas_as_its_link(self) -> None:
        enqueue(plus, (1, 2), link=chain(plus.s(1), hear.s()))
        enqueue(five, link=chord([plus.s(1), plus.s(2)], hear.s()))
        work()
        assert sorted(heard, key=str) == [("heard", 4), ("heard", [6, 7])]

    @pytest.mark.parametrize("nothing", [chain(), group(), group([])])
    def test_a_link_that_comes_to_nothing_is_nothing(self, nothing: Any) -> None:
        made = enqueue(five, link=[nothing, hear.s()])
        work()
        assert heard == [("heard", 5)]
        assert Run.objects.get(pk=made.pk).state == State.SUCCEEDED

    def test_what_is_enqueued_has_errbacks_too(self) -> None:
        made = enqueue(fail, link=hear.s(), link_error=told_id.s())
        work()
        assert heard == [("told", str(made.pk))]

    def test_each_of_many_that_are_enqueued_has_its_own(self) -> None:
        enqueue_many(plus, [Call((1, 2)), Call((3, 4))], link=hear.s())
        enqueue_many(fail, [Call()], link_error=said.si("failed"))
        work()
        assert sorted(heard) == [("heard", 3), ("heard", 7), ("said", "failed")]

    def test_a_link_to_an_unknown_task_waits_for_a_worker_that_knows_it(self) -> None:
        unknown = current_app.signature("elsewhere.task", app=current_app)
        five.apply_async(link=unknown, **NOW)
        (made,) = Run.objects.all()
        hint(made)
        assert Run.objects.get(task="elsewhere.task").args == "[5]"


def test_what_a_run_sets_off_can_be_told_in_words() -> None:
    canvas: Any = plus.s(1, 2) | group(plus.s(1), plus.s(2)) | total.s() | hear.s()
    canvas.apply_async(link_error=told_id.s(), **NOW)
    assert follow_ups.in_words(Run.objects.get().follow_ups) == (
        "on success celery.chord, tests.jobs.canvas.hear; on failure tests.jobs.canvas.told_id"
    )
    steps: Any = {"chain": [five.s(), plus.s(1)]}  # the last one first
    plus.apply_async((1, 2), link=hear.s(), **steps, **NOW)
    assert follow_ups.in_words(Run.objects.latest("pk").follow_ups) == (
        "on success tests.jobs.canvas.hear, tests.jobs.canvas.plus, tests.jobs.canvas.five"
    )
    assert follow_ups.in_words("") == ""
    for text in ("[5]", '{"link": 5}', '{"chain": ["x"]}', "{"):
        assert follow_ups.in_words(text) == f"cannot be read: {text!r}"


class TestChains:
    def test_a_chain_goes_on_step_by_step(self) -> None:
        promised: Any = chain(plus.s(1, 2), plus.s(10), plus.s(100)).apply_async(**NOW)
        done = work()
        assert [made.task.rsplit(".", 1)[1] for made in done] == ["plus"] * 3
        assert value_of(promised) == 113
        assert value_of(promised.parent) == 13
        assert [Run.objects.get(pk=made.pk).follows for made in done] == [
            None, done[0].pk, done[1].pk,
        ]  # fmt: skip

    def test_each_step_starts_a_family_with_the_first_as_its_root(self) -> None:
        chain(look.s(1), look.s(), look.s()).apply_async(**NOW)
        first, second, third = (str(made.pk) for made in work())
        family = [(seen["id"], seen["parent_id"], seen["root_id"]) for _, seen in heard]
        assert family == [(first, None, first), (second, first, first), (third, second, first)]

    def test_a_step_that_fails_ends_those_after_it(self) -> None:
        promised: Any = chain(plus.s(1, 2), fail.s(), plus.s(1), plus.s(2)).apply_async(**NOW)
        work()
        assert Run.objects.count() == 2
        for result in (promised, promised.parent, promised.parent.parent):
            assert result.state == states.FAILURE
        with pytest.raises(ValueError, match="no luck"):
            value_of(promised)

    def test_immutable_steps_take_no_result(self) -> None:
        promised = chain(plus.s(1, 2), five.si(), plus.si(1, 1)).apply_async(**NOW)
        work()
        assert value_of(promised) == 2

    def test_a_step_may_wait(self) -> None:
        chain(plus.s(1, 2), plus.s(10).set(countdown=60)).apply_async(**NOW)
        work()
        later = Run.objects.get(state=State.SCHEDULED)
        assert later.args == "[3, 10]"
        assert later.run_at > clock.now()

    def test_its_link_is_that_of_its_last_step(self) -> None:
        chain(plus.s(1, 2), plus.s(10)).apply_async(link=hear.s(), **NOW)
        work()
        assert heard == [("heard", 13)]

    def test_its_errback_is_called_for_the_step_that_fails(self) -> None:
        failing = chain(plus.s(1, 2), fail.s(), plus.s(10))
        failing.apply_async(link_error=told_id.s(), **NOW)
        _, failed, _ = work()
        assert heard == [("told", str(failed.pk))]

    def test_a_retry_keeps_the_rest(self) -> None:
        promised = chain(third_time.s(1), third_time.s(), plus.s(1)).apply_async(**NOW)
        work()
        assert value_of(promised) == 2
        assert Run.objects.count() == 3

    def test_stamps_and_headers_go_along(self) -> None:
        stamped = chain(look.s(1), look.s())
        stamped.stamp(customer="acme")
        stamped.apply_async(headers={"tenant": "t1"}, **NOW)
        work()
        assert [seen["stamps"] for _, seen in heard] == [{"customer": "acme"}] * 2
        assert heard[0][1]["tenant"] == "t1"

    def test_a_plain_chains_step_that_retries_goes_on_as_rows(
        self, canvas_redis: redis.Redis
    ) -> None:
        key, last = str(uuid7()), plus.s(1)
        result = last.freeze()
        deliver(third_time.name, key, args=(4,), chain=[dict(last)])
        (made,) = Run.objects.all()
        assert (str(made.pk), made.failures) == (key, 1)
        assert canvas_redis.llen("celery\x06\x166") == 0, "nothing waits in the broker"
        work()
        assert value_of(result) == 5


class TestGroups:
    def test_its_parts_are_runs(self) -> None:
        promised = group(plus.s(n, n) for n in range(3)).apply_async(**NOW)
        assert len(work()) == 3
        assert value_of(promised) == [0, 2, 4]

    def test_parts_know_their_group(self) -> None:
        promised = group(look.s(1), look.s(2)).apply_async(**NOW)
        work()
        assert {(seen["group"], seen["group_index"]) for _, seen in heard} == {
            (promised.id, 0), (promised.id, 1),
        }  # fmt: skip

    def test_chains_in_it(self) -> None:
        promised = group(chain(plus.s(1, 1), plus.s(1)), plus.s(5, 5)).apply_async(**NOW)
        work()
        assert value_of(promised) == [3, 10]

    def test_at_the_end_of_a_chain(self) -> None:
        promised = chain(plus.s(1, 1), group(plus.s(10), plus.s(20))).apply_async(**NOW)
        work()
        assert isinstance(promised, GroupResult)
        assert value_of(promised) == [12, 22]

    def test_in_the_middle_of_a_chain_it_is_a_chord(self) -> None:
        canvas: Any = plus.s(1, 1) | group(plus.s(10), plus.s(20)) | total.s() | plus.s(1)
        promised = canvas.apply_async(**NOW)
        work()
        assert value_of(promised) == 35
        assert not ChordCounter.objects.exists()


class TestChords:
    def test_the_body_is_called_with_all_results(self) -> None:
        promised = chord((plus.s(n, n) for n in range(4)), total.s()).apply_async(**NOW)
        assert ChordCounter.objects.get().count == 4
        done = work()
        assert value_of(promised) == 12
        body = Run.objects.get(pk=promised.id)
        assert (body.origin, body.follows) == (Origin.FOLLOW_UP, done[3].pk)
        assert not ChordCounter.objects.exists()

    def test_results_come_in_the_order_of_the_parts(self) -> None:
        promised = chord([plus.s(1, 1), plus.s(2, 2), plus.s(3, 3)], hear.s()).apply_async(**NOW)
        for made in Run.objects.order_by("-id"):
            hint(made)
        work()
        assert value_of(promised) == [2, 4, 6]

    def test_parts_that_are_tried_again_count_once(self) -> None:
        promised = chord([third_time.s(1), third_time.s(2)], total.s()).apply_async(**NOW)
        work()
        assert value_of(promised) == 3
        assert sorted(made.attempt for made in Run.objects.all()) == [1, 3, 3]

    def test_parts_that_ignore_their_results_are_heard_all_the_same(self) -> None:
        promised = chord([quiet.s(1), quiet.s(2)], total.s()).apply_async(**NOW)
        work()
        assert value_of(promised) == 3

    @pytest.mark.parametrize("bad", [fail.s(), fail_quietly.s(), end.s("reject"), end.s("ignore")])
    def test_a_part_that_fails_fails_the_body_when_all_are_done(self, bad: Any) -> None:
        body = total.s().on_error(told.s())
        promised = chord([bad, plus.s(1, 1)], body).apply_async(**NOW)
        hint(Run.objects.order_by("id")[0])
        assert promised.state == states.PENDING, "the other part is still to come"
        work()
        with pytest.raises(ChordError):
            value_of(AsyncResult(promised.id))
        ((_, (failed_id, *_)),) = heard
        assert failed_id == promised.id
        assert all_final()
        assert not ChordCounter.objects.exists()

    def test_nested_ones(self) -> None:
        inner = chord([plus.s(1, 1), plus.s(2, 2)], total.s())
        promised = chord([inner, chain(plus.s(1, 1), plus.s(1))], total.s()).apply_async(**NOW)
        work()
        assert value_of(promised) == 9
        assert not ChordCounter.objects.exists()

    def test_a_failure_deep_inside_reaches_the_outermost_body(self) -> None:
        inner = chord([plus.s(1, 1), fail.s()], total.s())
        promised = chord([inner, chain(plus.s(1, 1), plus.s(1))], total.s()).apply_async(**NOW)
        work()
        with pytest.raises(ChordError):
            value_of(AsyncResult(promised.id))
        assert not ChordCounter.objects.exists()
        assert all_final()

    def test_a_part_that_exits_fails_the_body_and_ends_nobody_else(self) -> None:
        parts = [leave.s(), plus.s(1, 1)]
        promised = chord(parts, total.s().on_error(told.s())).apply_async(**NOW)
        work()
        with pytest.raises(ChordError, match="SystemExit: 3"):
            value_of(AsyncResult(promised.id))
        assert [name for name, _ in heard] == ["told"]
        assert {made.state for made in Run.objects.filter(task=leave.name)} == {State.FAILED}

    def test_a_chains_step_that_fails_is_a_failed_part(self) -> None:
        broken = chain(fail.s(), plus.s(1), plus.s(2))
        promised = chord([broken, plus.s(1, 1)], total.s()).apply_async(**NOW)
        work()
        with pytest.raises(ChordError):
            value_of(AsyncResult(promised.id))
        assert not ChordCounter.objects.exists()

    def test_a_body_that_is_a_group(self) -> None:
        promised = chord([plus.s(1, 1), plus.s(2, 2)], group(total.s(), total.s())).apply_async(
            **NOW
        )
        work()
        assert value_of(promised) == [6, 6]

    def test_a_body_that_is_a_group_fails_as_one(self) -> None:
        body = group(total.s().on_error(told.s()), total.s())
        promised: Any = chord([plus.s(1, 1), fail.s()], body).apply_async(**NOW)
        work()
        assert [result.state for result in promised.results] == [states.FAILURE] * 2
        assert [name for name, _ in heard] == ["told"]

    def test_an_empty_header_calls_the_body_at_once(self) -> None:
        with transaction.atomic():
            chord([], hear.s().set(countdown=0)).apply_async(**NOW)
        work()
        assert heard == [("heard", [])]

    def test_two_parts_that_end_at_the_same_moment_make_one_body(self) -> None:
        promised = chord([plus.s(n, n) for n in range(8)], total.s()).apply_async(**NOW)
        futures = [in_thread(partial(hint, made)) for made in Run.objects.all()]
        for future in futures:
            future.result(20)
        assert Run.objects.filter(origin=Origin.FOLLOW_UP).count() == 1
        work()
        assert value_of(promised) == 56

    def test_the_last_of_many_parts_asks_for_all_results_at_once(self) -> None:
        promised = chord((plus.s(n, n) for n in range(60)), total.s()).apply_async(**NOW)
        *others, last = Run.objects.all()
        for made in others:
            hint(made)
        with CaptureQueriesContext(connection) as statements:
            hint(last)
        assert len(statements) < 25
        work()
        assert value_of(promised) == 60 * 59

    def test_a_plain_part_without_a_result_fails_the_body_and_nobody_waits(self) -> None:
        promised = chord([plus.s(1, 1), plus.s(2, 2)], total.s()).apply_async(**NOW)
        first, second = Run.objects.all()
        hint(first)
        TaskResult.objects.filter(task_id=str(first.pk)).delete()
        hint(second)
        with pytest.raises(ChordError, match="no result"):
            value_of(AsyncResult(promised.id))
        assert all_final()

    def test_a_counter_that_is_gone_stops_no_part(self) -> None:
        chord([plus.s(1, 1), plus.s(2, 2)], total.s()).apply_async(**NOW)
        ChordCounter.objects.all().delete()
        work()
        assert set(Run.objects.values_list("state", flat=True)) == {State.SUCCEEDED}

    def test_it_is_rolled_back_with_the_callers_transaction(self) -> None:
        with transaction.atomic():
            chord([plus.s(1, 1), plus.s(2, 2)], total.s()).apply_async(**NOW)
            transaction.set_rollback(True)
        assert not Run.objects.exists()
        assert not ChordCounter.objects.exists()


class TestErrbacks:
    def test_the_newer_style_is_told_the_request_the_error_and_its_traceback(self) -> None:
        promised = fail.apply_async(link_error=told.s(), **NOW)
        work()
        assert heard == [("told", (promised.id, fail.name, "ValueError('no luck')", True))]

    def test_the_newer_style_with_arguments_of_its_own(self) -> None:
        promised = fail.apply_async(link_error=told_more.s("more"), **NOW)
        work()
        assert heard == [("told", (promised.id, "ValueError('no luck')", "more"))]

    def test_the_older_style_is_told_the_id(self) -> None:
        promised = fail.apply_async(link_error=told_id.s(), **NOW)
        work()
        assert heard == [("told", promised.id)]

    def test_an_immutable_one_is_told_nothing(self) -> None:
        fail.apply_async(link_error=[said.si("sorry")], **NOW)
        work()
        assert heard == [("said", "sorry")]

    def test_a_bound_one_can_retry(self) -> None:
        promised = fail.apply_async(link_error=told_after_a_retry.s(), **NOW)
        work()
        assert heard == [("told", promised.id)]

    def test_one_that_fails_is_tried_again_with_the_same_arguments(self) -> None:
        promised = fail.apply_async(link_error=told_at_the_second_try.s(), **NOW)
        work()
        Run.objects.filter(state=State.SCHEDULED).update(run_at=clock.now())
        work()
        assert heard == [("tried", promised.id)] * 2
        assert all_final()

    def test_a_canvas_is_told_the_id(self) -> None:
        promised = fail.apply_async(link_error=chain(hear.s(), hear.s()), **NOW)
        work()
        assert heard == [("heard", promised.id)] * 2

    def test_one_that_cannot_be_sent_stops_no_other(self) -> None:
        bad = told_id.s().set(task_id="no uuid")
        promised = fail.apply_async(link_error=[bad, told_id.s()], **NOW)
        work()
        assert heard == [("told", promised.id)]
        assert row(promised).state == State.FAILED

    def test_an_error_that_holds_what_postgres_refuses_is_told(self) -> None:
        made = run(
            State.RUNNING, task=fail.name, args="[]",
            follow_ups='{"link_error": [' + encoded(told.s()) + "]}",
        )  # fmt: skip
        error = ValueError("a \0 and a \ud800")
        finish(made.pk, 1, Outcome(State.FAILED, "x", "x", "t \0", failed=True, value=error))
        work()
        ((_, (failed_id, _, text, _)),) = heard
        assert (failed_id, text) == (str(made.pk), repr(error))

    def test_a_success_calls_none(self) -> None:
        plus.apply_async((1, 1), link_error=told_id.s(), **NOW)
        work()
        assert heard == []


def encoded(signature: Any) -> str:
    from scheduling.registry import encode

    return encode(signature)


class TestOtherEndings:
    """A run that is ended from outside its job has the follow-ups of a failure."""

    def make(self) -> tuple[AsyncResult[Any], AsyncResult[Any]]:
        """A part of a chord with a chain behind it and an errback, and the chord's body."""
        part = chain(five.s().on_error(told_id.s()), plus.s(1))
        body = chord([part, plus.s(1, 1)], total.s()).apply_async(countdown=0)
        (part_id,) = Run.objects.filter(task=five.name).values_list("pk", flat=True)
        hint(Run.objects.get(task=plus.name))
        return AsyncResult(str(part_id)), body

    def check(self, part: AsyncResult[Any], body: AsyncResult[Any], state: State) -> None:
        work()
        assert row(part).state == state
        assert heard == [("told", part.id)]
        for result in (part, body):
            with pytest.raises(Exception, match=r"."):
                value_of(result)
        assert not ChordCounter.objects.exists()
        assert all_final()

    def test_a_waiting_run_is_cancelled(self) -> None:
        part, body = self.make()
        assert cancel(row(part).pk, by="ann").state == State.CANCELLED
        self.check(part, body, State.CANCELLED)

    def test_a_running_run_is_cancelled(self) -> None:
        from scheduling.runs.outcomes import cancelled

        part, body = self.make()
        Run.objects.filter(pk=part.id).update(state=State.RUNNING)
        assert finish(row(part).pk, 1, cancelled("ann"))
        self.check(part, body, State.CANCELLED)

    def test_a_run_expires(self) -> None:
        part, body = self.make()
        Run.objects.filter(pk=part.id).update(expires_at=clock.now())
        assert expire_waiting() == 1
        assert expire_waiting() == 0
        self.check(part, body, State.EXPIRED)

    def test_a_run_is_lost_for_good(self) -> None:
        part, body = self.make()
        Run.objects.filter(pk=part.id).update(state=State.RUNNING, max_attempts=1)
        lost = failed_attempt(five.name, 1, 0, RuntimeError("its worker was lost"))
        assert finish(row(part).pk, 1, lost)
        self.check(part, body, State.FAILED)

    def test_arguments_do_not_fit_any_more(self) -> None:
        part, body = self.make()
        Run.objects.filter(pk=part.id).update(args='["too many"]')
        self.check(part, body, State.FAILED)

    def test_a_run_that_is_handed_back_sets_nothing_off(self) -> None:
        part, body = self.make()
        Run.objects.filter(pk=part.id).update(state=State.RUNNING)
        assert finish(row(part).pk, 1, Outcome(State.SCHEDULED, "handed back"))
        assert heard == []
        work()
        assert value_of(body) == 8

    def test_ignore_ends_the_chain_without_its_errbacks(self) -> None:
        promised: Any = chain(end.s("ignore").on_error(told_id.s()), plus.s(1)).apply_async(**NOW)
        work()
        assert heard == []
        assert promised.state == states.REVOKED

    def test_follow_ups_that_cannot_be_read_end_the_run_all_the_same(self) -> None:
        made = run(State.QUEUED, follow_ups='{"link": ')
        hint(made)
        assert Run.objects.get(pk=made.pk).state == State.FAILED

    @pytest.mark.parametrize(
        ("follow_ups", "options"),
        [
            ("[1]", "{}"),
            ("5", "{}"),
            ("null", "{}"),
            ('{"link": ', "{}"),
            ('{"link": 5}', "{}"),
            ('{"link": [{"a": 1}]}', "{}"),
            ('{"link_error": [7]}', "{}"),
            ('{"chain": 3}', "{}"),
            ('{"chord": 7}', "{}"),
            ('{"chord": {"task": null}}', "{}"),
            ('{"link_error": []}', "[1]"),
            ('{"link_error": []}', "{"),
        ],
    )
    @pytest.mark.parametrize("how", ["it runs", "it is lost", "it expires", "it is cancelled"])
    def test_odd_rows_end_and_stop_no_other(
        self, follow_ups: str, options: str, how: str, settings: Settings
    ) -> None:
        settings.RUN_LEASE = timedelta(0)
        waits = how != "it is lost"
        odd, other = (
            run(
                State.QUEUED if waits else State.RUNNING,
                task=five.name,
                args="[]",
                max_attempts=1,
                **columns,
            )
            for columns in ({"follow_ups": follow_ups, "options": options}, {})
        )
        if how == "it runs":
            hint(odd)
            hint(other)
        elif how == "it is lost":
            Run.objects.update(lease_expires_at=clock.now() - timedelta(minutes=1))
            recover_lost_leases()
        elif how == "it expires":
            Run.objects.update(expires_at=clock.now())
            expire_waiting()
        else:
            cancel(odd.pk, by="ann")
            cancel(other.pk, by="ann")
        for made in (odd, other):
            assert Run.objects.get(pk=made.pk).state not in UNFINISHED


class TestReplacing:
    @pytest.mark.parametrize(
        ("canvas", "value"), [("one", 11), ("chain", 111), ("group", [11, 21]), ("chord", 32)]
    )
    def test_a_run_goes_on_as_what_replaces_it(self, canvas: str, value: Any) -> None:
        promised = becomes.apply_async((1, canvas), link=hear.s(), **NOW)
        work()
        assert value_of(promised) == value
        assert heard == [("heard", value)]
        assert row(promised).state == State.SUCCEEDED
        assert row(promised).attempt == 2
        assert not ChordCounter.objects.exists()
        assert all_final()

    @pytest.mark.parametrize("canvas", ["one", "chain", "group", "chord"])
    def test_in_a_chain_the_rest_follows_the_replacement(self, canvas: str) -> None:
        promised = chain(becomes.s(1, canvas), hear.s(), said.si("after")).apply_async(**NOW)
        work()
        assert [name for name, _ in heard] == ["heard", "said"]
        assert promised.state == states.SUCCESS
        assert all_final()

    @pytest.mark.parametrize(("canvas", "value"), [("one", 13), ("chain", 113), ("chord", 34)])
    def test_in_a_chord_the_replacement_is_the_part(self, canvas: str, value: int) -> None:
        promised = chord([becomes.s(1, canvas), plus.s(1, 1)], total.s()).apply_async(**NOW)
        work()
        assert value_of(promised) == value
        assert not ChordCounter.objects.exists()

    @pytest.mark.parametrize("canvas", ["failing chain", "failing chord"])
    def test_a_replacement_that_fails_fails_the_run(self, canvas: str) -> None:
        promised = becomes.apply_async((1, canvas), link_error=told_id.s(), **NOW)
        work()
        assert row(promised).state == State.FAILED
        with pytest.raises(Exception, match=r"."):
            value_of(promised)
        assert heard
        assert all_final()

    def test_while_its_replacement_is_at_work_it_waits_and_can_be_cancelled(self) -> None:
        promised = becomes.apply_async((1, "chain that waits"), **NOW)
        work()
        waits = row(promised)
        assert (waits.state, waits.args) == (State.SCHEDULED, "[11, 100]")
        assert cancel(waits.pk, by="ann").state == State.CANCELLED

    def test_cancelled_before_its_turn_it_ends_what_would_have_come_after(self) -> None:
        promised = becomes.apply_async((1, "chain"), link=hear.s(), **NOW)
        hint(row(promised))
        parked = row(promised)
        assert (parked.state, parked.reason) == (State.SCHEDULED, "replaced by celery.chain")
        assert parked.run_at > clock.now()
        cancel(parked.pk, by="ann")
        work()
        assert heard == []
        assert row(promised).state == State.CANCELLED
        assert all_final()

    def test_its_expiry_is_not_that_of_what_replaces_it(self) -> None:
        made = enqueue(becomes, (1, "chain that waits"), expires=timedelta(hours=1))
        hint(made)
        Run.objects.filter(pk=made.pk).update(expires_at=clock.now())
        assert expire_waiting() == 0
        work()
        later = Run.objects.get(pk=made.pk)
        assert (later.state, later.expires_at) == (State.SCHEDULED, None)

    def test_one_that_cannot_be_written_fails_the_run(self) -> None:
        promised = becomes.apply_async((1, "unsendable"), link_error=told_id.s(), **NOW)
        work()
        assert row(promised).state in (State.SUCCEEDED, State.FAILED)
        assert all_final()

    def test_a_plain_message_replaces_itself_as_ever(self) -> None:
        key = str(uuid7())
        deliver(becomes.name, key, args=(1, "one"))
        work()
        assert value_of(AsyncResult(key)) == 11


def again(old: Any, **options: Any) -> Run:
    """Replay a run whose job succeeds now, and work; return the replay."""
    Run.objects.filter(pk=old.pk, task=fail.name).update(task=five.name, args="[]")
    new = replay(old.pk, by="ann", **options)
    work()
    return new


class TestReplays:
    def test_of_a_failed_run_sets_off_what_its_success_would_have(self) -> None:
        steps: Any = {"chain": [hear.s(), plus.s(1)]}  # the last one first
        fail.apply_async(link=hear.s(), **steps, **NOW)
        (old,) = work()
        new = again(old)
        assert heard == [("heard", 5), ("heard", 6)]
        assert (new.left_out, Run.objects.filter(follows=new.pk).count()) == ((), 2)

    def test_that_fails_again_calls_its_errbacks_again(self) -> None:
        fail.apply_async(link_error=told_id.s(), **NOW)
        (old, _) = work()
        new = replay(old.pk, by="ann")
        work()
        assert heard == [("told", str(old.pk)), ("told", str(new.pk))]

    def test_of_a_cancelled_run_goes_on_with_its_chain(self) -> None:
        promised: Any = chain(plus.s(1, 2), hear.s(), plus.s(1)).apply_async(**NOW)
        (old,) = Run.objects.all()
        cancel(old.pk, by="ann")
        again(old)
        assert heard == [("heard", 3)]
        assert promised.state == states.REVOKED, "its steps are new runs, under ids of their own"

    def test_twice_sets_it_off_twice(self) -> None:
        canvas: Any = fail.s() | plus.s(1) | group(plus.s(10), plus.s(20)) | hear.s() | hear.s()
        canvas.apply_async(**NOW)
        (old,) = work()
        for _ in range(2):
            again(old)
        assert heard == [("heard", [16, 26])] * 4
        assert not Run.objects.exclude(pk=old.pk).exclude(state=State.SUCCEEDED).exists()
        assert not ChordCounter.objects.exists()

    def test_of_a_success_sends_nothing_twice_unless_asked_to(self) -> None:
        chain(plus.s(1, 2), hear.s(), plus.s(1)).apply_async(**NOW)
        (old, *_) = work()
        assert again(old).left_out == (SENT,)
        assert heard == [("heard", 3)]
        assert again(old, sent_too=True).left_out == ()
        assert heard == [("heard", 3)] * 2

    def test_of_a_success_still_calls_its_errbacks(self) -> None:
        plus.apply_async((1, 2), link_error=told_id.s(), **NOW)
        (old,) = work()
        new = replay(old.pk, by="ann")
        Run.objects.filter(pk=new.pk).update(task=fail.name)
        work()
        assert heard == [("told", str(new.pk))]

    @pytest.mark.parametrize("rest", [(), (plus.s(1),), (plus.s(1), group(plus.s(1), plus.s(2)))])
    def test_of_a_part_of_a_chord_is_not_counted_again(self, rest: Any) -> None:
        part = chain(fail.s(), *rest) if rest else fail.s()
        promised = chord([part, plus.s(1, 1)], total.s()).apply_async(**NOW)
        old = next(made for made in work() if made.task == fail.name)
        new = again(old)
        assert new.left_out == (CHORD,)
        assert all_final()
        assert promised.state == states.FAILURE
        assert not Run.objects.filter(task=total.name).exists()
        assert not Run.objects.exclude(pk=old.pk).exclude(state=State.SUCCEEDED).exists()

    def test_of_many_set_off_what_they_should_too(self) -> None:
        for _ in range(2):
            fail.apply_async(link=hear.s(), **NOW)
        chord([fail.s(), plus.s(1, 1)], total.s()).apply_async(**NOW)
        plus.apply_async((1, 2), link=hear.s(), **NOW)
        work()
        heard.clear()
        Run.objects.filter(task=fail.name).update(task=five.name)
        ended = Run.objects.filter(origin=Origin.ADHOC)
        assert replay_all(ended, by="ann", limit=100) == (5, 5, 2)
        work()
        assert heard == [("heard", 5)] * 2
        assert all_final()

    def test_of_follow_ups_that_cannot_be_read_are_no_more_readable(self) -> None:
        for text in ('{"link": 5', "5", '{"link": 5}', '{"chain": ["x"]}'):
            old = run(State.FAILED, task=five.name, follow_ups=text)
            assert replay(old.pk, by="ann").follow_ups == text


class TestBrokenEnds:
    """The follow-up and the end are one: both are there, or neither."""

    @pytest.mark.parametrize(
        ("error", "times"),
        [(DataError("refused"), 1), (OperationalError("gone"), 1), (OperationalError("gone"), 2)],
    )
    def test_what_was_undone_goes_out_once_when_the_end_is_written(
        self, error: Exception, times: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        promised = chord([plus.s(1, 1)], hear.s()).apply_async(**NOW)
        tries = fail_after_the_follow_ups(monkeypatch, [error] * times)
        work()
        assert tries == []
        assert (value_of(promised), heard) == ([2], [("heard", [2])])

    def test_a_connection_that_is_cut_before_its_commit_undoes_both(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        promised = chain(plus.s(1, 2), hear.s()).apply_async(**NOW)
        cuts, send_next = [1], follow_ups._send_next

        def cut(*args: Any) -> Any:
            children = send_next(*args)
            if cuts:
                cuts.pop()
                pid = connection.connection.info.backend_pid
                with second_connection() as other:
                    other.execute("SELECT pg_terminate_backend(%s)", [pid])
                    other.commit()
            return children

        monkeypatch.setattr(follow_ups, "_send_next", cut)
        work()
        assert (value_of(promised), heard) == (3, [("heard", 3)])
        assert Run.objects.count() == 2

    def test_one_that_is_never_accepted_fails_the_run_and_tells_its_errbacks(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any) -> None:
            raise DataError("refused")

        promised = plus.apply_async((1, 2), link=hear.s(), link_error=told_id.s(), **NOW)
        monkeypatch.setattr(follow_ups, "_send_next", refuse)
        hint(Run.objects.get())
        monkeypatch.undo()
        work()
        assert row(promised).state == State.FAILED
        assert heard == [("told", promised.id)]
        with pytest.raises(Exception, match="could not be stored"):
            value_of(promised)

    def test_an_error_that_nobody_expects_fails_the_run_and_not_its_worker(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: Any) -> Any:
            raise AttributeError("no such thing")

        monkeypatch.setattr(current_app.backend, "with_children", broken)
        made = enqueue(five, link=hear.s(), link_error=told_id.s())
        work()
        after = Run.objects.get(pk=made.pk)
        assert after.state == State.FAILED
        assert "AttributeError: no such thing" in after.reason
        assert heard == [("told", str(made.pk))]

    def test_an_attempt_that_has_lost_its_fence_sets_nothing_off(self) -> None:
        promised = plus.apply_async((1, 2), link=hear.s(), **NOW)
        Run.objects.update(state=State.RUNNING, attempt=2)
        assert not finish(row(promised).pk, 1, Outcome(State.SUCCEEDED, value=3))
        assert not finish(row(promised).pk, 1, Outcome(State.SUCCEEDED, value=3, followed=True))
        assert Run.objects.count() == 1

    def test_an_end_that_is_written_twice_sets_off_once(self) -> None:
        promised = plus.apply_async((1, 2), link=hear.s(), **NOW)
        Run.objects.update(state=State.RUNNING)
        outcome = Outcome(State.SUCCEEDED, value=3)
        assert finish(row(promised).pk, 1, outcome)
        assert not finish(row(promised).pk, 1, outcome)
        assert Run.objects.count() == 2

    def test_nothing_of_it_needs_the_broker(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def away(*_: Any, **__: Any) -> Any:
            raise AssertionError("the broker was asked")

        monkeypatch.setattr("kombu.Connection.default_channel", property(away))
        monkeypatch.setattr("kombu.Connection.ensure_connection", away)
        body = group(total.s(), total.s())
        chord([plus.s(1, 1), fail.s()], body).apply_async(**NOW)
        promised = chain(plus.s(1, 1), group(plus.s(1), plus.s(2)), total.s()).apply_async(**NOW)
        work()
        assert value_of(promised) == 7


def fail_after_the_follow_ups(
    monkeypatch: pytest.MonkeyPatch, errors: list[Exception]
) -> list[Exception]:
    """Let the ends of runs that others follow fail when all is written but the commit."""
    count_part = follow_ups.count_part

    def fail_then(*args: Any) -> None:
        count_part(*args)
        if errors:
            raise errors.pop()

    monkeypatch.setattr(follow_ups, "count_part", fail_then)
    return errors
