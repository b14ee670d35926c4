"""The pages of runs, through Django's test client, on real Postgres."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django_celery_beat.models import IntervalSchedule, PeriodicTask
from django_celery_results.models import TaskResult
from pytest_django import DjangoAssertNumQueries

from scheduling import clock
from scheduling.admin.runs import replay_all as run_replays
from scheduling.models import Origin, Run, State
from scheduling.runs.enqueueing import enqueue
from scheduling.runs.scheduled_calls import run_now
from tests.scheduling.admin_pages import grant, planned_run, texts
from tests.scheduling.ledger import plans_of, write_successes
from tests.scheduling.ledger import run as written

pytestmark = pytest.mark.django_db

LIST = "/admin/scheduling/run/"
ADD = "tests.jobs.tasks.add"
DUE = datetime(2026, 3, 29, 1, tzinfo=UTC)


@pytest.fixture
def schedule() -> PeriodicTask:
    interval = IntervalSchedule.objects.create(every=1, period="hours")
    made: PeriodicTask = PeriodicTask.objects.create(
        name="hourly", task=ADD, args="[1, 2]", interval=interval
    )
    return made


def page_of(run: Run) -> str:
    return reverse("admin:scheduling_run_change", args=[run.pk])


def listed(client: Client, **query: Any) -> list[Run]:
    return list(client.get(LIST, query).context["cl"].result_list)


def act(client: Client, name: str, *runs: Run) -> list[str]:
    """Call an action from the list; return the messages."""
    data = {"action": name, "_selected_action": [run.pk for run in runs], "index": 0}
    return texts(client.post(LIST, data, follow=True))


class TestTheList:
    def test_it_is_there_when_nothing_has_run(self, admin_client: Client) -> None:
        assert "0 runs" in admin_client.get(LIST).content.decode()

    def test_it_shows_lateness_duration_and_attempt(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        planned_run(
            schedule,
            State.SUCCEEDED,
            DUE,
            started_at=DUE + timedelta(seconds=90),
            finished_at=DUE + timedelta(seconds=92.5),
            attempt=2,
            max_attempts=5,
        )
        page = admin_client.get(LIST).content.decode()
        for shown in ("1 min 30 s", "2.50 s", "2 of 5", "2026-03-29 01:00:00 UTC", "tb-succeeded"):
            assert shown in page

    def test_lateness_counts_from_when_the_run_might_start(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        start = DUE + timedelta(minutes=20)
        planned_run(
            schedule, State.SUCCEEDED, DUE, run_at=start, started_at=start, finished_at=start
        )
        assert "20 min" not in admin_client.get(LIST).content.decode()

    def test_the_newest_come_first(self, admin_client: Client) -> None:
        runs = [enqueue(ADD, (n, n)) for n in range(3)]
        assert [run.pk for run in listed(admin_client)] == [run.pk for run in reversed(runs)]

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ({"state__exact": "failed"}, True),
            ({"state__exact": "running"}, False),
            ({"task": ADD}, True),
            ({"task": "no.such.task"}, False),
            ({"schedule": "hourly"}, True),
            ({"schedule": " hourly "}, True),
            ({"schedule": "daily"}, False),
            ({"origin__exact": "schedule"}, True),
            ({"origin__exact": "replay"}, False),
            ({"q": "nonsense"}, False),
        ],
    )
    def test_each_filter_finds_what_it_says(
        self, admin_client: Client, schedule: PeriodicTask, query: dict[str, str], found: bool
    ) -> None:
        planned_run(schedule, State.FAILED, DUE)
        assert bool(listed(admin_client, **query)) == found

    @pytest.mark.parametrize(
        ("ago", "found"),
        [
            (timedelta(minutes=5), {"hour", "week", "month"}),
            (timedelta(days=3), {"week", "month"}),
            (timedelta(days=20), {"month"}),
            (timedelta(days=60), set()),
            (timedelta(days=-2), {"later"}),
        ],
    )
    def test_it_filters_by_when_a_run_was_due(
        self, admin_client: Client, schedule: PeriodicTask, ago: timedelta, found: set[str]
    ) -> None:
        planned_run(schedule, State.FAILED, clock.now() - ago)
        windows = ("hour", "week", "month", "later")
        assert {due for due in windows if listed(admin_client, due=due)} == found

    @pytest.mark.usefixtures("noon")
    def test_it_filters_by_today(self, admin_client: Client, schedule: PeriodicTask) -> None:
        now = clock.now()
        today = planned_run(schedule, State.FAILED, now)
        planned_run(schedule, State.FAILED, now - timedelta(days=1))
        assert [run.pk for run in listed(admin_client, due="today")] == [today.pk]

    def test_the_schedules_name_finds_runs_of_every_origin_and_earlier_names(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        planned_run(schedule, State.FAILED, DUE)
        PeriodicTask.objects.filter(pk=schedule.pk).update(name="every hour")
        schedule.refresh_from_db()
        run_now(schedule, by="ana")
        assert len(listed(admin_client, schedule="every hour")) == 2

    def test_the_name_of_a_deleted_schedule_still_finds_its_runs(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        planned_run(schedule, State.FAILED, DUE)
        schedule.delete()
        assert len(listed(admin_client, schedule="hourly")) == 1

    def test_the_filter_to_type_into_keeps_the_others(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        page = admin_client.get(LIST, {"state__exact": "failed", "schedule": "hourly"})
        assert '<input type="hidden" name="state__exact" value="failed">' in page.content.decode()

    def test_the_search_finds_one_run_by_its_id(self, admin_client: Client) -> None:
        run, _ = enqueue(ADD, (1, 2)), enqueue(ADD, (1, 2))
        assert [found.pk for found in listed(admin_client, q=str(run.pk))] == [run.pk]

    def test_a_page_of_fifty_costs_as_many_queries_as_a_page_of_one(
        self,
        admin_client: Client,
        schedule: PeriodicTask,
        django_assert_max_num_queries: DjangoAssertNumQueries,
    ) -> None:
        for n in range(60):
            planned_run(schedule, State.FAILED, DUE + timedelta(hours=n))
        with django_assert_max_num_queries(7) as asked:
            assert len(listed(admin_client)) == 50
        sql = [query["sql"] for query in asked.captured_queries]
        assert not [text for text in sql if "COUNT(*)" in text and "LIMIT" not in text]


class TestAListOfMany:
    @pytest.mark.usefixtures("bare_runs")
    def test_what_is_rare_is_found_by_an_index(self, admin_client: Client) -> None:
        write_successes(ADD, 20_000)
        rare = [{"state__exact": state.value} for state in State if state != State.SUCCEEDED]
        rare += [{"origin__exact": "replay"}, {"origin__exact": "backfill"}, {"due": "later"}]
        for query in (*rare, {"state__exact": "failed", "due": "hour"}):
            with CaptureQueriesContext(connection) as asked:
                assert admin_client.get(LIST, query).status_code == 200
            plans = plans_of(asked, "scheduling_run")
            assert "Index" in plans, query
            assert "Seq Scan" not in plans, query
            assert "pkey" not in plans, query

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ({"state__exact": "held"}, {"held", "backfill"}),
            ({"origin__exact": "backfill"}, {"backfill"}),
            ({"origin__exact": "replay"}, {"replay"}),
            ({"due": "later"}, {"held", "backfill", "cancelled"}),
            ({"state__exact": ["held", "cancelled"]}, {"held", "backfill", "cancelled"}),
        ],
    )
    def test_what_is_said_for_an_index_leaves_nothing_out(
        self, admin_client: Client, query: dict[str, Any], found: set[str]
    ) -> None:
        tomorrow = clock.now() + timedelta(days=1)
        backfill, old = uuid.uuid4(), uuid.uuid4()
        written(State.HELD, task="held", due_at=tomorrow)
        written(
            State.HELD, task="backfill", due_at=tomorrow, backfill_id=backfill, origin="backfill"
        )
        written(State.SUCCEEDED, task="replay", replay_of=old, origin="replay")
        written(State.CANCELLED, task="cancelled", due_at=tomorrow)
        assert {one.task for one in listed(admin_client, **query)} == found


class TestThePage:
    def test_it_shows_arguments_errors_and_the_result(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        error = {
            "attempt": 1,
            "error": "ConnectionError: <down>",
            "traceback": "Traceback: line 7",
            "worker": "w1@host",
            "started_at": DUE.isoformat(),
            "ended_at": (DUE + timedelta(seconds=1)).isoformat(),
        }
        old = uuid.uuid4()
        run = planned_run(
            schedule, State.FAILED, DUE, args='["nörth", 3]', errors=[error], replay_of=old
        )
        TaskResult.objects.create(task_id=str(run.pk), status="FAILURE", result='"out of reach"')
        page = admin_client.get(page_of(run)).content.decode()
        for shown in (
            "nörth",
            "ConnectionError: &lt;down&gt;",
            "Traceback: line 7",
            "w1@host",
            "FAILURE",
            "out of reach",
            reverse("admin:scheduling_schedule_change", args=[schedule.pk]),
            reverse("admin:scheduling_run_change", args=[old]),
        ):
            assert shown in page

    def test_it_shows_a_run_with_nothing_but_its_row(self, admin_client: Client) -> None:
        run = enqueue(ADD, (1, 2))
        page = admin_client.get(page_of(run)).content.decode()
        assert "none stored" in page
        assert "1 of 3" in page

    def test_it_bears_arguments_that_are_no_json(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        run = planned_run(schedule, State.FAILED, DUE, args="[1,", errors=[{"error": "bare"}])
        assert "[1," in admin_client.get(page_of(run)).content.decode()

    def test_it_says_by_how_much_a_deadline_was_missed(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        run = planned_run(
            schedule, State.FAILED, DUE, deadline=DUE, late_by=timedelta(minutes=3, seconds=1)
        )
        page = admin_client.get(page_of(run)).content.decode()
        assert "2026-03-29 01:00:00 UTC, missed by 3 min 1 s" in page

    def test_it_cannot_be_written(self, admin_client: Client) -> None:
        run = enqueue(ADD, (1, 2))
        assert "_save" not in admin_client.get(page_of(run)).content.decode()
        assert admin_client.post(page_of(run), {"state": "failed"}).status_code == 403
        assert admin_client.post(f"{LIST}{run.pk}/delete/", {"post": "yes"}).status_code == 403
        assert admin_client.get(f"{LIST}add/").status_code == 403

    def test_an_unknown_run_leads_back_with_a_message(self, admin_client: Client) -> None:
        page = reverse("admin:scheduling_run_change", args=[uuid.uuid4()])
        assert texts(admin_client.get(page, follow=True))


class TestActions:
    def test_cancel_ends_a_waiting_run_at_once(self, admin_client: Client) -> None:
        run = enqueue(ADD, (1, 2))
        (said,) = act(admin_client, "cancel", run)
        assert said.startswith("Cancelled")
        run.refresh_from_db()
        assert (run.state, run.reason) == (State.CANCELLED, "cancelled by admin")
        assert LogEntry.objects.get().change_message == "Cancelled"

    def test_cancel_asks_the_worker_of_a_running_one(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        run = planned_run(schedule, State.RUNNING, DUE, started_at=DUE, worker="w1@host")
        (said,) = act(admin_client, "cancel", run)
        assert said.startswith("Asked its worker to stop it")
        run.refresh_from_db()
        assert run.cancel_requested_by == "admin"
        assert "cancel asked for" in admin_client.get(page_of(run)).content.decode()

    def test_cancel_and_replay_say_why_they_would_not(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        done, waiting = planned_run(schedule, State.FAILED, DUE), enqueue(ADD, (1, 2))
        assert "nothing to cancel" in act(admin_client, "cancel", done)[0]
        assert "only a finished run" in act(admin_client, "replay", waiting)[0]

    def test_replay_writes_a_new_run_that_names_the_old_one(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        old = planned_run(schedule, State.FAILED, DUE, args="[1, 2]")
        url = reverse("admin:scheduling_run_act", args=[old.pk, "replay"])
        (said,) = texts(admin_client.post(url, follow=True))
        new = Run.objects.get(origin=Origin.REPLAY)
        assert str(new.pk) in said
        assert (new.replay_of, new.args, new.enqueued_by) == (old.pk, "[1, 2]", "admin")
        Run.objects.filter(pk=old.pk).update(follow_ups='{"chord": {"task": "t"}}')
        (said,) = texts(admin_client.post(url, follow=True))
        assert "not repeated: its chord" in said
        page = admin_client.get(reverse("admin:scheduling_run_change", args=[old.pk]))
        assert "part of the chord of t" in page.content.decode()

    def test_a_page_offers_what_makes_sense(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        done, waiting = planned_run(schedule, State.FAILED, DUE), enqueue(ADD, (1, 2))
        offered = [
            [name for name, _ in admin_client.get(page_of(run)).context["buttons"]]
            for run in (done, waiting)
        ]
        assert offered == [["replay"], ["cancel"]]


class TestReplayAll:
    PAGE = f"{LIST}replay-all/"

    def test_the_list_offers_it_once_a_filter_is_chosen(self, admin_client: Client) -> None:
        assert "replay-all" not in admin_client.get(LIST).content.decode()
        page = admin_client.get(LIST, {"state__exact": "failed", "task": ADD})
        assert f"replay-all/?state__exact=failed&amp;task={ADD}" in page.content.decode()

    def test_its_page_says_how_many_and_writes_nothing(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        runs = [planned_run(schedule, State.FAILED, DUE + timedelta(hours=n)) for n in range(3)]
        act(admin_client, "replay", runs[0])
        query = {"state__exact": "failed", "schedule": "hourly"}
        page = admin_client.get(self.PAGE, query).content.decode()
        assert "3 finished runs, due 2026-03-29 01:00:00 UTC to 2026-03-29 03:00:00 UTC" in page
        assert "1 of them has been replayed already" in page
        assert "Replay 2 runs" in page
        assert Run.objects.count() == 4

    def test_its_page_counts_no_further_than_it_would_replay(
        self, admin_client: Client, schedule: PeriodicTask, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(run_replays, "MOST_AT_ONCE", 2)
        runs = [planned_run(schedule, State.FAILED, DUE + timedelta(hours=n)) for n in range(4)]
        act(admin_client, "replay", runs[0])
        page = admin_client.get(self.PAGE, {"state__exact": "failed"}).content.decode()
        assert "More than 2 finished runs, due 2026-03-29 01:00:00 UTC and later." in page
        assert "1 of them has been replayed already" in page
        assert "At most 2 are replayed at once" in page
        assert "Replay 2 runs" in page

    def test_its_page_reads_no_crowd(self, admin_client: Client) -> None:
        write_successes(ADD, 20_000)
        with CaptureQueriesContext(connection) as asked:
            page = admin_client.get(self.PAGE, {"state__exact": "succeeded"}).content.decode()
        assert "More than 5,000 finished runs" in page
        counts = [query["sql"] for query in asked if "COUNT(" in query["sql"]]
        assert counts
        assert all("LIMIT 5001" in sql for sql in counts)

    def test_confirmed_it_replays_each_once(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        runs = [planned_run(schedule, State.FAILED, DUE + timedelta(hours=n)) for n in range(3)]
        planned_run(schedule, State.FAILED, DUE - timedelta(hours=1), task="other")
        act(admin_client, "replay", runs[0])
        url = f"{self.PAGE}?task={ADD}"
        assert texts(admin_client.post(url, follow=True)) == ["Replayed 2 runs."]
        replays = Run.objects.filter(origin=Origin.REPLAY)
        assert set(replays.values_list("replay_of", flat=True)) == {run.pk for run in runs}
        assert replays.latest("pk").enqueued_by == "admin"
        assert texts(admin_client.post(url, follow=True)) == ["Replayed 0 runs."]
        assert texts(admin_client.post(url, {"again": "1"}, follow=True)) == ["Replayed 3 runs."]

    def test_failed_ones_are_meant_where_no_state_is_chosen(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        planned_run(schedule, State.SUCCEEDED, DUE)
        page = admin_client.get(self.PAGE, {"task": ADD}).content.decode()
        assert "No finished run matches" in page

    @pytest.mark.parametrize("query", [{}, {"state__exact": ""}, {"p": "2"}])
    def test_without_a_filter_nothing_is_replayed(
        self, admin_client: Client, schedule: PeriodicTask, query: dict[str, str]
    ) -> None:
        planned_run(schedule, State.FAILED, DUE)
        for call in (admin_client.get, admin_client.post):
            call(f"{self.PAGE}?{urlencode(query)}")
        assert Run.objects.count() == 1

    def test_a_filter_that_is_none_leads_back_to_the_list(self, admin_client: Client) -> None:
        answer = admin_client.get(self.PAGE, {"nonsense__exact": "1"})
        assert (answer.status_code, answer["Location"]) == (302, LIST)

    def test_who_may_only_look_may_not(self, client: Client, schedule: PeriodicTask) -> None:
        client.force_login(grant("view_run"))
        planned_run(schedule, State.FAILED, DUE)
        assert "replay-all" not in client.get(LIST, {"task": ADD}).content.decode()
        for call in (client.get, client.post):
            assert call(f"{self.PAGE}?task={ADD}").status_code == 403
        assert Run.objects.count() == 1


class TestPermissions:
    @pytest.mark.parametrize("name", ["cancel", "replay"])
    def test_who_may_only_look_can_do_nothing(
        self, client: Client, schedule: PeriodicTask, name: str
    ) -> None:
        client.force_login(grant("view_run"))
        runs = [planned_run(schedule, State.FAILED, DUE), enqueue(ADD, (1, 2))]
        act(client, name, *runs)
        for run in runs:
            url = reverse("admin:scheduling_run_act", args=[run.pk, name])
            assert client.post(url).status_code == 403
            assert not client.get(page_of(run)).context["buttons"]
        assert sorted(Run.objects.values_list("state", flat=True)) == ["failed", "scheduled"]

    def test_who_may_change_runs_may_cancel_and_replay(self, client: Client) -> None:
        client.force_login(grant("change_run"))
        run = enqueue(ADD, (1, 2))
        assert act(client, "cancel", run)
        assert act(client, "replay", run)
        assert Run.objects.count() == 2
        assert client.post(page_of(run), {"state": "failed"}).status_code == 403
