"""The pages of schedules, through Django's test client, on real Postgres."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.urls import reverse
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
)
from pytest_django import DjangoAssertNumQueries

from scheduling import schedules as core
from scheduling.admin.schedules import filters as schedule_filters
from scheduling.models import Calendar, ManagedBy, Overlap, Plan, Policy, Run, Schedule, State
from scheduling.schedules import editing
from scheduling.schedules.policies import POLICIES
from tests.scheduling.admin_pages import grant, planned_run, texts
from tests.scheduling.ledger import YEAR, in_thread, second_connection, sessions_blocked
from tests.waiting import wait_for

pytestmark = pytest.mark.django_db

LIST = "/admin/scheduling/schedule/"
ADD = "tests.jobs.tasks.add"


@pytest.fixture(autouse=True)
def no_schedules_of_code(db: None) -> None:
    """Leave out the project's own, which `migrate` writes."""
    PeriodicTask.objects.all().delete()


@pytest.fixture
def crontab() -> CrontabSchedule:
    rule: CrontabSchedule = CrontabSchedule.objects.create(
        minute="30", hour="2", timezone="Europe/Berlin"
    )
    return rule


@pytest.fixture
def schedule(crontab: CrontabSchedule) -> PeriodicTask:
    made: PeriodicTask = PeriodicTask.objects.create(
        name="nightly", task=ADD, args="[1, 2]", crontab=crontab
    )
    return made


@pytest.fixture
def of_code(schedule: PeriodicTask) -> PeriodicTask:
    Policy.objects.create(schedule=schedule, managed_by=ManagedBy.CODE)
    return schedule


def page_of(schedule: PeriodicTask) -> str:
    return reverse("admin:scheduling_schedule_change", args=[schedule.pk])


def form(schedule: PeriodicTask | None = None, **changes: Any) -> dict[str, Any]:
    """Return the data that a browser would send for the form, with some fields changed."""
    has_policy = schedule is not None and Policy.objects.filter(schedule=schedule).exists()
    data: dict[str, Any] = {
        "name": "nightly",
        "task": ADD,
        "enabled": "on",
        "args": "[1, 2]",
        "kwargs": "{}",
        "headers": "{}",
        "crontab": schedule.crontab_id if schedule else "",
        "policy-TOTAL_FORMS": "1",
        "policy-INITIAL_FORMS": "1" if has_policy else "0",
        "policy-MIN_NUM_FORMS": "0",
        "policy-MAX_NUM_FORMS": "1",
        "policy-0-schedule": schedule.pk if schedule and has_policy else "",
        "policy-0-overlap": "allow",
        "policy-0-catch_up": "latest",
        "policy-0-spread": "00:00:00",
        "policy-0-excluded_day": "skip",
    }
    return {**data, **changes}


def act(client: Client, name: str, *schedules: PeriodicTask, **more: Any) -> list[str]:
    """Call an action from the list; return the messages."""
    data = {"action": name, "_selected_action": [s.pk for s in schedules], "index": 0, **more}
    return texts(client.post(LIST, data, follow=True))


class TestTheList:
    def test_it_says_what_to_do_when_it_is_empty(self, admin_client: Client) -> None:
        assert "0 schedules" in admin_client.get(LIST).content.decode()

    def test_it_shows_rule_next_run_last_outcome_and_owner(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        due = datetime(2026, 3, 29, 1, tzinfo=UTC)
        Plan.objects.filter(schedule=schedule).update(needs_plan=False, next_due_at=due)
        Policy.objects.create(schedule=schedule, owner="night shift")
        planned_run(schedule, State.FAILED, due - timedelta(days=1))
        page = admin_client.get(LIST).content.decode()
        assert "30 2 * * * (Europe/Berlin)" in page
        assert "2026-03-29 01:00:00 UTC" in page
        assert "tb-failed" in page
        assert "night shift" in page

    def test_the_last_outcome_is_that_of_the_newest_run_planned_or_asked_for(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        planned_run(schedule, State.SUCCEEDED, datetime(2026, 3, 1, tzinfo=UTC))
        planned_run(schedule, State.FAILED, datetime(2026, 3, 2, tzinfo=UTC))
        assert "tb-badge tb-failed" in admin_client.get(LIST).content.decode()
        act(admin_client, "run_now", schedule)
        assert "tb-badge tb-scheduled" in admin_client.get(LIST).content.decode()

    def test_it_tells_disabled_paused_and_quarantined_apart(
        self, admin_client: Client, crontab: CrontabSchedule
    ) -> None:
        rows = [
            PeriodicTask.objects.create(name=name, task=ADD, crontab=crontab, enabled=name != "off")
            for name in ("off", "resting", "broken", "fine")
        ]
        core.pause(rows[1], by="ana", reason="stock taking")
        Plan.objects.filter(schedule=rows[2]).update(error="cannot read arguments")
        by_status = {
            status: [
                row.name
                for row in admin_client.get(LIST, {"status": status}).context["cl"].result_list
            ]
            for status in ("disabled", "paused", "quarantine", "enabled")
        }
        assert by_status == {
            "disabled": ["off"],
            "paused": ["resting"],
            "quarantine": ["broken"],
            "enabled": ["fine"],
        }

    def test_a_pause_that_is_over_counts_as_enabled(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        Policy.objects.create(
            schedule=schedule,
            paused_at=datetime(2026, 1, 1, tzinfo=UTC),
            paused_until=datetime(2026, 1, 2, tzinfo=UTC),
        )
        assert not admin_client.get(LIST, {"status": "paused"}).context["cl"].result_list
        assert admin_client.get(LIST, {"status": "enabled"}).context["cl"].result_list

    @pytest.mark.parametrize("few", [0, 1, 1000])
    @pytest.mark.parametrize("query", [{"managed_by": "user"}, {"next": "none"}])
    def test_what_few_schedules_are_is_found_as_what_many_are(
        self,
        admin_client: Client,
        schedule: PeriodicTask,
        monkeypatch: pytest.MonkeyPatch,
        few: int,
        query: dict[str, str],
    ) -> None:
        monkeypatch.setattr(schedule_filters, "FEW", few)
        other, code = (
            PeriodicTask.objects.create(name=name, task=ADD, crontab=schedule.crontab)
            for name in ("other", "code")
        )
        Policy.objects.create(schedule=other)
        Policy.objects.create(schedule=code, managed_by=ManagedBy.CODE)
        PeriodicTask.objects.exclude(pk__in=[schedule.pk, other.pk, code.pk]).delete()
        Plan.objects.update(next_due_at=None)
        Plan.objects.filter(schedule=code).update(next_due_at=datetime(2027, 1, 1, tzinfo=UTC))
        names = [row.name for row in admin_client.get(LIST, query).context["cl"].result_list]
        assert names == sorted([schedule.name, "other"])

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ({"q": "ght"}, True),
            ({"q": "jobs.tasks"}, True),
            ({"q": "weekly"}, False),
            ({"task": ADD}, True),
            ({"task": "no.such.task"}, False),
            ({"owner": "night shift"}, True),
            ({"owner": "other"}, False),
            ({"next": "none"}, False),
            ({"next": "late"}, True),
            ({"next": "day"}, True),
            ({"managed_by": "user"}, True),
            ({"managed_by": "code"}, False),
            ({"rule": "interval-1"}, False),
            ({"rule": "nonsense"}, True),
            ({"rule": f"crontab-{'9' * 5000}"}, True),
            ({"owner": "a\0b"}, False),
            ({"task": "a\0b"}, False),
        ],
    )
    def test_each_filter_finds_what_it_says(
        self, admin_client: Client, schedule: PeriodicTask, query: dict[str, str], found: bool
    ) -> None:
        Policy.objects.create(schedule=schedule, owner="night shift")
        due = datetime(2026, 1, 1, tzinfo=UTC)
        Plan.objects.filter(schedule=schedule).update(needs_plan=False, next_due_at=due)
        assert bool(admin_client.get(LIST, query).context["cl"].result_list) == found

    def test_a_page_of_fifty_costs_as_many_queries_as_a_page_of_one(
        self,
        admin_client: Client,
        crontab: CrontabSchedule,
        django_assert_max_num_queries: DjangoAssertNumQueries,
    ) -> None:
        PeriodicTask.objects.bulk_create(
            PeriodicTask(name=f"job {n:02}", task=ADD, crontab=crontab) for n in range(60)
        )
        for schedule in PeriodicTask.objects.all():
            planned_run(schedule, State.SUCCEEDED, datetime(2026, 3, 1, tzinfo=UTC))
        with django_assert_max_num_queries(8) as asked:
            response = admin_client.get(LIST)
        assert len(response.context["cl"].result_list) == 50
        assert not [
            q for q in asked.captured_queries if "COUNT(*)" in q["sql"] and "LIMIT" not in q["sql"]
        ]

    def test_a_count_stops_at_its_bound_and_says_so(
        self, admin_client: Client, crontab: CrontabSchedule, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("scheduling.admin.common.paging.BOUND", 100)
        PeriodicTask.objects.bulk_create(
            PeriodicTask(name=f"job {n:03}", task=ADD, crontab=crontab) for n in range(150)
        )
        page = admin_client.get(LIST)
        assert "more than 100 schedules" in page.content.decode()
        assert page.context["cl"].paginator.num_pages == 2


class TestTheForm:
    def test_it_shows_the_next_five_occurrences_with_their_clock_changes(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        page = admin_client.get(page_of(schedule)).content.decode()
        assert page.count("02:30:00 CE") + page.count("03:00:00 CE") == 5

    @pytest.mark.parametrize(
        ("minute", "hour", "month", "words"),
        [
            (
                "30",
                "2",
                "3",
                r"the clocks skip \d{4}-03-\d\d 02:30: it runs right after the gap",
            ),
            (
                "*/30",
                "2-3",
                "3",
                r"the clocks skip \d{4}-03-\d\d 02:00 and 1 more: no run for",
            ),
            ("30", "2-3", "10", "the clocks show this time twice"),
        ],
    )
    def test_it_says_what_the_clocks_do_to_an_occurrence(
        self, admin_client: Client, minute: str, hour: str, month: str, words: str
    ) -> None:
        last_sunday = CrontabSchedule.objects.create(
            minute=minute, hour=hour, day_of_month="25-31", month_of_year=month, day_of_week="sun",
            timezone="Europe/Berlin",
        )  # fmt: skip
        schedule = PeriodicTask.objects.create(name="n", task=ADD, crontab=last_sunday)
        assert re.search(words, admin_client.get(page_of(schedule)).text)

    def test_it_shows_when_a_run_starts_where_there_is_a_spread(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        assert (
            "starts (with its spread)" not in admin_client.get(page_of(schedule)).content.decode()
        )
        Policy.objects.create(schedule=schedule, spread=timedelta(hours=1))
        page = admin_client.get(page_of(schedule)).content.decode()
        assert "starts (with its spread)" in page

    def test_it_shows_why_a_schedule_is_in_quarantine(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        error = "args are not JSON: '[1,'"
        Plan.objects.filter(schedule=schedule).update(needs_plan=False, error=error)
        page = admin_client.get(page_of(schedule)).content.decode()
        assert 'role="alert"' in page
        assert "args are not JSON: &#x27;[1,&#x27;" in page

    def test_it_shows_a_schedule_whose_rule_cannot_be_read(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        CrontabSchedule.objects.update(hour="L")
        PeriodicTask.objects.update(args="[1,", task="gone.task")
        assert admin_client.get(LIST).status_code == 200
        page = admin_client.get(page_of(schedule)).content.decode()
        assert "gone.task (not registered)" in page

    def test_it_lists_no_table_in_a_select_box(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        CrontabSchedule.objects.bulk_create(
            CrontabSchedule(minute=str(m), hour="4") for m in range(60)
        )
        page = admin_client.get(page_of(schedule)).content.decode()
        assert "30 2 * * *" in page
        assert "59 4 * * *" not in page

    def test_it_adds_a_schedule_with_its_policy(
        self, admin_client: Client, crontab: CrontabSchedule
    ) -> None:
        data = form(crontab=crontab.pk, **{"policy-0-overlap": "skip", "policy-0-owner": "a@b.org"})
        response = admin_client.post(f"{LIST}add/", data)
        assert response.status_code == 302
        made = Schedule.objects.get(name="nightly")
        assert (made.policy.overlap, made.policy.owner) == (Overlap.SKIP, "a@b.org")
        assert made.plan.needs_plan

    def test_it_adds_no_policy_where_the_defaults_do(
        self, admin_client: Client, crontab: CrontabSchedule
    ) -> None:
        admin_client.post(f"{LIST}add/", form(crontab=crontab.pk))
        assert Schedule.objects.get(name="nightly")
        assert not Policy.objects.exists()

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"args": "[1,"}, "args are not JSON"),
            ({"args": '{"x": 1}'}, "args must be a JSON array"),
            ({"kwargs": "[]"}, "kwargs must be a JSON object"),
            ({"headers": "[]"}, "headers must be a JSON object"),
            ({"args": "[1]"}, "do not fit task tests.jobs.tasks.add"),
            ({"kwargs": '{"z": 1}'}, "do not fit task tests.jobs.tasks.add"),
            ({"task": "tests.jobs.tasks.ad"}, "did you mean 'tests.jobs.tasks.add'"),
            ({"task": "celery.backend_cleanup"}, "task"),
            ({"crontab": ""}, "must be set"),
            ({"priority": "4"}, "4"),
            ({"expires_0": "2027-01-01", "expires_1": "00:00", "expire_seconds": "5"}, "not both"),
            ({"policy-0-spread": "-00:00:01"}, "greater than or equal to"),
        ],
    )
    def test_it_refuses_what_could_not_run_and_says_why(
        self, admin_client: Client, schedule: PeriodicTask, changes: dict[str, str], complaint: str
    ) -> None:
        response = admin_client.post(page_of(schedule), form(schedule, **changes))
        assert response.status_code == 200
        errors = str(response.context["errors"])
        assert complaint in errors.replace("&#x27;", "'")
        schedule.refresh_from_db()
        assert (schedule.task, schedule.args) == (ADD, "[1, 2]")

    def test_it_refuses_a_rule_that_never_fires(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        never = CrontabSchedule.objects.create(
            minute="0", hour="0", day_of_month="31", month_of_year="2"
        )
        response = admin_client.post(page_of(schedule), form(schedule, crontab=never.pk))
        assert "does not fire within ten years" in str(response.context["errors"])

    def test_a_start_at_the_end_of_time_is_refused(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        interval = IntervalSchedule.objects.create(every=5, period="minutes")
        Policy.objects.create(schedule=schedule, spread=timedelta(minutes=1))
        end = {"start_time_0": "9999-12-31", "start_time_1": "23:59:59"}
        values = form(schedule, crontab="", interval=interval.pk, **end)
        response = admin_client.post(page_of(schedule), values)
        assert "does not fire within ten years" in str(response.context["errors"])
        assert "The rule has no further occurrence" in response.text

    def test_it_refuses_two_rules(self, admin_client: Client, schedule: PeriodicTask) -> None:
        interval = IntervalSchedule.objects.create(every=5, period="minutes")
        response = admin_client.post(page_of(schedule), form(schedule, interval=interval.pk))
        assert "Only one of" in str(response.context["errors"])

    def test_an_instant_makes_a_schedule_run_once(self, admin_client: Client) -> None:
        instant = ClockedSchedule.objects.create(clocked_time=datetime(YEAR, 1, 1, tzinfo=UTC))
        admin_client.post(f"{LIST}add/", form(clocked=instant.pk))
        assert Schedule.objects.get(name="nightly").one_off

    def test_a_schedule_of_an_unknown_task_can_be_switched_off(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        PeriodicTask.objects.update(task="gone.task")
        data = form(schedule, task="gone.task")
        assert admin_client.post(page_of(schedule), data).status_code == 200
        del data["enabled"]
        assert admin_client.post(page_of(schedule), data).status_code == 302
        schedule.refresh_from_db()
        assert not schedule.enabled

    def test_a_save_never_erases_an_occurrence_that_is_due(
        self, admin_client: Client, schedule: PeriodicTask, crontab: CrontabSchedule
    ) -> None:
        due = datetime(2026, 1, 1, 2, 30, tzinfo=UTC)
        with connection.cursor() as cursor:
            cursor.execute("UPDATE scheduling_plan SET needs_plan = false, next_due_at = %s", [due])
        other = CrontabSchedule.objects.create(minute="15", hour="3", timezone="UTC")
        response = admin_client.post(
            page_of(schedule), form(schedule, crontab=other.pk, description="later")
        )
        assert response.status_code == 302
        plan = Plan.objects.get(schedule=schedule)
        assert plan.next_due_at == due
        assert plan.needs_plan
        assert plan.plan_from > due

    def test_a_save_that_changes_no_time_asks_for_no_plan(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        Plan.objects.update(needs_plan=False)
        assert (
            admin_client.post(page_of(schedule), form(schedule, description="x")).status_code == 302
        )
        assert not Plan.objects.get(schedule=schedule).needs_plan

    def test_a_save_leaves_alone_what_beat_wrote_meanwhile(
        self, admin_client: Client, schedule: PeriodicTask, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ran = datetime(2026, 1, 1, tzinfo=UTC)

        def beat_writes(*_: Any) -> None:
            PeriodicTask.objects.update(last_run_at=ran, total_run_count=7)

        monkeypatch.setattr("scheduling.admin.schedules.form.ScheduleForm._check_call", beat_writes)
        admin_client.post(page_of(schedule), form(schedule, description="x"))
        schedule.refresh_from_db()
        assert (schedule.description, schedule.last_run_at) == ("x", ran)
        assert schedule.total_run_count == 7

    def test_an_edit_of_the_policy_keeps_a_pause(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        core.pause(schedule, by="ana", reason="stock taking")
        page = admin_client.get(page_of(schedule)).content.decode()
        assert "by ana: stock taking" in page
        data = form(schedule, **{"policy-0-owner": "ben@example.org"})
        assert admin_client.post(page_of(schedule), data).status_code == 302
        policy = Policy.objects.get(schedule=schedule)
        assert (policy.owner, policy.paused_by) == ("ben@example.org", "ana")

    def test_deleting_a_schedule_keeps_its_runs(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        planned_run(schedule, State.SUCCEEDED, datetime(2026, 3, 1, tzinfo=UTC))
        response = admin_client.post(f"{LIST}{schedule.pk}/delete/", {"post": "yes"})
        assert response.status_code == 302
        assert not Schedule.objects.exists()
        assert not Plan.objects.exists()
        assert Run.objects.count() == 1


class TestActions:
    def test_what_would_never_fire_is_not_enabled(
        self, admin_client: Client, crontab: CrontabSchedule
    ) -> None:
        never = CrontabSchedule.objects.create(minute="0", hour="0", month_of_year="2",
                                               day_of_month="31")  # fmt: skip
        rows = [
            PeriodicTask.objects.create(name=name, task=ADD, crontab=rule, enabled=False)
            for name, rule in (("fine", crontab), ("never", never))
        ]
        problem, done = act(admin_client, "enable", *rows)
        assert problem.startswith("never stays disabled: '0 0 31 2 * (UTC)' does not fire")
        assert done == "Enabled 1 schedule."
        assert [row.name for row in Schedule.objects.filter(enabled=True)] == ["fine"]

    def test_enable_and_disable_say_what_they_changed(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        assert act(admin_client, "disable", schedule) == ["Disabled 1 schedule."]
        assert act(admin_client, "disable", schedule) == ["Already disabled: 1 schedule."]
        assert act(admin_client, "enable", schedule) == ["Enabled 1 schedule."]
        assert Schedule.objects.get().enabled
        assert LogEntry.objects.count() == 2

    def test_run_now_writes_a_run_beside_the_plan(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        PeriodicTask.objects.update(priority=0, queue="celery")
        before = Plan.objects.values().get()
        (said,) = act(admin_client, "run_now", schedule)
        run = Run.objects.get()
        assert str(run.pk) in said
        assert (run.task, run.args, run.priority) == (ADD, "[1, 2]", 0)
        assert run.enqueued_by == "admin"
        assert Plan.objects.values().get() == before

    def test_run_now_says_why_it_would_not(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        PeriodicTask.objects.update(args="[1,")
        (said,) = act(admin_client, "run_now", schedule)
        assert "not JSON" in said
        assert not Run.objects.exists()

    def test_pause_keeps_who_and_why_and_resume_ends_it(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        said = act(admin_client, "pause", schedule, reason="stock taking")
        assert said == ["Paused 1 schedule until resumed."]
        policy = Policy.objects.get(schedule=schedule)
        assert (policy.paused_by, policy.pause_reason) == ("admin", "stock taking")
        said = act(admin_client, "resume", schedule)
        assert said == ["Resumed 1 schedule: planned again from now."]
        assert Policy.objects.get(schedule=schedule).paused_at is None
        assert act(admin_client, "resume", schedule) == [
            "Nothing was resumed: none of the schedules is paused."
        ]

    def test_the_page_of_a_schedule_pauses_it_until_an_instant(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        url = reverse("admin:scheduling_schedule_act", args=[schedule.pk, "pause"])
        response = admin_client.post(
            url, {"reason": "move", "until": "2099-01-01T06:00"}, follow=True
        )
        assert "paused until 2099-01-01 06:00:00 UTC" in response.content.decode()
        until = Policy.objects.get(schedule=schedule).paused_until
        assert until == datetime(2099, 1, 1, 6, tzinfo=UTC)

    @pytest.mark.parametrize("until", ["2001-01-01T00:00", "soon"])
    def test_a_pause_until_no_time_to_come_is_refused(
        self, admin_client: Client, schedule: PeriodicTask, until: str
    ) -> None:
        url = reverse("admin:scheduling_schedule_act", args=[schedule.pk, "pause"])
        assert texts(admin_client.post(url, {"until": until}, follow=True))
        assert not Policy.objects.filter(paused_at__isnull=False).exists()

    def test_too_many_at_once_are_refused(
        self, admin_client: Client, crontab: CrontabSchedule
    ) -> None:
        rows = PeriodicTask.objects.bulk_create(
            PeriodicTask(name=f"job {n:03}", task=ADD, args="[1, 2]", crontab=crontab)
            for n in range(101)
        )
        (said,) = act(admin_client, "run_now", *rows)
        assert said.startswith("Nothing was done")
        assert not Run.objects.exists()

    def test_buttons_answer_posts_only(self, admin_client: Client, schedule: PeriodicTask) -> None:
        url = reverse("admin:scheduling_schedule_act", args=[schedule.pk, "run_now"])
        assert admin_client.get(url).status_code == 405
        gone = reverse("admin:scheduling_schedule_act", args=[schedule.pk + 1, "run_now"])
        assert admin_client.post(gone).status_code == 404
        other = reverse("admin:scheduling_schedule_act", args=[schedule.pk, "delete_selected"])
        assert admin_client.post(other).status_code == 403


class TestPermissions:
    @pytest.mark.parametrize("name", ["enable", "disable", "run_now", "pause", "resume"])
    def test_who_may_only_look_can_do_nothing(
        self, client: Client, schedule: PeriodicTask, name: str, django_user_model: type[User]
    ) -> None:
        client.force_login(grant("view_schedule"))
        page = client.get(LIST)
        assert page.status_code == 200
        assert not page.context["cl"].model_admin.get_actions(page.wsgi_request)
        act(client, name, schedule)
        url = reverse("admin:scheduling_schedule_act", args=[schedule.pk, name])
        assert client.post(url).status_code == 403
        assert "formaction" not in client.get(page_of(schedule)).content.decode()
        assert client.post(page_of(schedule), form(schedule)).status_code == 403
        assert not Run.objects.exists()
        assert not Policy.objects.exists()

    @pytest.mark.parametrize("permission", ["change_schedule", "change_periodictask"])
    def test_who_may_change_schedules_may_act_on_them_and_set_their_policy(
        self, client: Client, schedule: PeriodicTask, permission: str
    ) -> None:
        client.force_login(grant(permission))
        assert act(client, "disable", schedule) == ["Disabled 1 schedule."]
        assert len(act(client, "run_now", schedule)) == 1
        data = form(schedule, **{"policy-0-owner": "ben@example.org"})
        assert client.post(page_of(schedule), data).status_code == 302
        assert Policy.objects.get(schedule=schedule).owner == "ben@example.org"

    def test_who_has_no_permission_sees_no_schedules(
        self, client: Client, schedule: PeriodicTask
    ) -> None:
        client.force_login(grant("view_run"))
        assert client.get(LIST).status_code == 403
        assert LIST not in client.get("/admin/").content.decode()


class TestCodeManaged:
    def test_its_form_is_read_only_and_says_why(
        self, admin_client: Client, of_code: PeriodicTask
    ) -> None:
        page = admin_client.get(page_of(of_code)).content.decode()
        assert "Code manages this schedule" in page
        assert 'name="args"' not in page
        assert 'name="policy-0-owner"' not in page
        assert "_save" not in page
        assert admin_client.post(page_of(of_code), form(of_code)).status_code == 403

    def test_it_is_not_deleted_one_by_one_or_in_bulk(
        self, admin_client: Client, of_code: PeriodicTask
    ) -> None:
        assert admin_client.post(f"{LIST}{of_code.pk}/delete/", {"post": "yes"}).status_code == 403
        data = {"action": "delete_selected", "_selected_action": of_code.pk, "post": "yes"}
        assert admin_client.post(LIST, data).status_code == 403
        assert Schedule.objects.filter(pk=of_code.pk).exists()

    def test_it_is_not_switched_off_but_can_be_paused_resumed_and_run(
        self, admin_client: Client, of_code: PeriodicTask
    ) -> None:
        (said,) = act(admin_client, "disable", of_code)
        assert said == "Managed by code, so not changed: nightly. Pause a schedule that must stop."
        assert Schedule.objects.get(pk=of_code.pk).enabled
        assert act(admin_client, "pause", of_code) == ["Paused 1 schedule until resumed."]
        url = reverse("admin:scheduling_schedule_act", args=[of_code.pk, "resume"])
        assert texts(admin_client.post(url, follow=True)) == [
            "Resumed 1 schedule: planned again from now."
        ]
        assert act(admin_client, "run_now", of_code)
        assert Run.objects.count() == 1


def test_the_front_page_names_schedules_once(admin_client: Client) -> None:
    page = admin_client.get("/admin/").content.decode()
    assert "Truebeat" in page
    assert reverse("admin:scheduling_schedule_changelist") in page
    assert "/periodictask/" not in page


class TestItsPolicy:
    def test_every_policy_can_be_changed_there(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        office = Calendar.objects.create(name="office", weekdays=[5, 6])
        asked = {
            "catch_up": "all", "catch_up_window": "2 00:00:00", "overlap": "queue",
            "spread": "00:05:00", "max_attempts": "5", "deadline_after": "01:00:00",
            "calendar": office.pk, "excluded_day": "next", "pause_after_failures": "3",
            "owner": "ben@example.org",
        }  # fmt: skip
        assert set(asked) == set(POLICIES)
        policy = {f"policy-0-{name}": value for name, value in asked.items()}
        admin_client.post(page_of(schedule), form(schedule, **policy))
        made = Policy.objects.get(schedule=schedule)
        assert {name: getattr(made, name) for name in POLICIES} == {
            "catch_up": "all", "catch_up_window": timedelta(days=2), "overlap": "queue",
            "spread": timedelta(minutes=5), "max_attempts": 5,
            "deadline_after": timedelta(hours=1), "calendar": office, "excluded_day": "next",
            "pause_after_failures": 3, "owner": "ben@example.org",
        }  # fmt: skip

    @pytest.mark.parametrize("name", ["catch_up_window", "spread", "deadline_after"])
    @pytest.mark.parametrize("length", ["-00:00:01", "36501 00:00:00", "soon"])
    def test_a_length_that_cannot_be_is_refused_beside_its_field(
        self, admin_client: Client, schedule: PeriodicTask, name: str, length: str
    ) -> None:
        data = form(schedule, **{f"policy-0-{name}": length})
        page = admin_client.post(page_of(schedule), data).content.decode()
        assert "errornote" in page
        assert not Policy.objects.filter(schedule=schedule).exists()


@pytest.mark.django_db(transaction=True)
def test_a_save_and_an_edit_by_command_at_once_do_not_wait_for_each_other_for_ever(
    admin_client: Client, schedule: PeriodicTask
) -> None:
    Policy.objects.create(schedule=schedule)
    data = form(schedule, description="new", **{"policy-0-owner": "ben@example.org"})
    with second_connection() as other:
        other.execute("SELECT 1 FROM scheduling_policy FOR UPDATE")
        save = in_thread(lambda: admin_client.post(page_of(schedule), data))
        assert wait_for(lambda: sessions_blocked() == 1)
        edit = in_thread(
            lambda: editing.edit(
                schedule, columns={"queue": "celery"}, policy={"overlap": "skip"}, by="ann"
            )
        )
        assert wait_for(lambda: sessions_blocked() == 2)
        other.commit()
    assert (save.result(5).status_code, bool(edit.result(5))) == (302, True)
    policy = Policy.objects.get(schedule=schedule)
    assert (policy.owner, policy.overlap) == ("ben@example.org", "skip")


class TestThePreviewOfAChange:
    def preview(self, client: Client, schedule: PeriodicTask, **changes: Any) -> str:
        data = form(schedule, **changes, _preview="Preview the change")
        return client.post(page_of(schedule), data).content.decode()

    def test_it_says_what_moves_and_saves_nothing(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        assert "Preview the change" in admin_client.get(page_of(schedule)).content.decode()
        later = CrontabSchedule.objects.create(minute="30", hour="3", timezone="Europe/Berlin")
        page = self.preview(admin_client, schedule, crontab=later.pk, description="typed")
        assert "Nothing has been saved" in page
        assert re.search(r"adds (29|30|31) occurrences, removes (29|30|31) and keeps 0", page)
        assert "typed" in page
        schedule.refresh_from_db()
        assert (schedule.crontab_id == later.pk, schedule.description) == (False, "")
        assert not Policy.objects.filter(schedule=schedule).exists()
        assert not LogEntry.objects.exists()

    def test_what_moves_nothing_is_said_too(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        page = self.preview(admin_client, schedule, description="other")
        assert "no occurrence moves" in page

    def test_a_calendar_that_is_chosen_takes_its_days_out(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        weekends = Calendar.objects.create(name="weekends", weekdays=[5, 6])
        page = self.preview(admin_client, schedule, **{"policy-0-calendar": weekends.pk})
        assert re.search("it adds 0 occurrences, removes ([89]|10) and keeps 2[012]", page)
        assert not Policy.objects.filter(schedule=schedule).exists()

    def test_a_schedule_that_is_disabled_loses_all(
        self, admin_client: Client, schedule: PeriodicTask
    ) -> None:
        page = self.preview(admin_client, schedule, enabled="")
        # As many as days, except for the hour that a clock change adds or removes.
        assert re.search(r"it adds 0 occurrences, removes (29|30|31) and keeps 0", page)

    @pytest.mark.parametrize(
        "changes", [{"args": "[1"}, {"crontab": ""}, {"policy-0-max_attempts": "0"}]
    )
    def test_a_form_that_does_not_fit_shows_its_errors_and_no_preview(
        self, admin_client: Client, schedule: PeriodicTask, changes: dict[str, str]
    ) -> None:
        page = self.preview(admin_client, schedule, **changes)
        assert "errornote" in page
        assert "Nothing has been saved" not in page

    def test_who_may_not_change_it_is_offered_none(
        self, client: Client, schedule: PeriodicTask
    ) -> None:
        client.force_login(grant("view_schedule"))
        assert "Preview the change" not in client.get(page_of(schedule)).content.decode()
        data = form(schedule, _preview="x")
        assert client.post(page_of(schedule), data).status_code == 403

    def test_saving_goes_on_as_before(self, admin_client: Client, schedule: PeriodicTask) -> None:
        admin_client.post(page_of(schedule), form(schedule, description="saved"))
        schedule.refresh_from_db()
        assert schedule.description == "saved"
