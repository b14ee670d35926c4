from datetime import date, datetime, timedelta
from threading import Barrier, Thread
from zoneinfo import ZoneInfo

import pytest
from django.db import connection
from pytest_django import DjangoAssertNumQueries, Settings

from notifications import sweep as sweeps
from notifications.dates import today
from notifications.models import Delivery, LifecycleId, Reminder
from notifications.tasks import deliver, sweep
from scheduling.errors import EnqueueError
from scheduling.jobs import PermanentError
from scheduling.models import Run
from tests.notifications.factories import (
    deliveries,
    make_record,
    make_reminder,
    make_run,
    sweep_on,
)

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sixty_days")]


def settle(*, sent: bool) -> None:
    """End every pending delivery, as its run would."""
    if sent:
        Delivery.objects.in_state("pending").update(
            sent_at=datetime(2026, 12, 1, tzinfo=ZoneInfo("UTC"))
        )
        return
    for delivery in Delivery.objects.in_state("pending"):
        deliver(delivery.pk)


class TestWhatIsDue:
    @pytest.mark.parametrize(
        ("on", "count"),
        [
            ("2026-11-19", 0),
            ("2026-11-20", 1),
            ("2026-11-21", 1),
            ("2027-01-19", 1),
            ("2027-01-20", 0),
        ],
    )
    def test_it_is_due_from_the_lead_time_until_the_day_of_the_expiry(
        self, on: str, count: int
    ) -> None:
        make_record(expires_on=date(2027, 1, 19))
        assert sweep_on(on) == [count]

    def test_it_leaves_retired_records_alone(self) -> None:
        make_record(status="retired")
        assert sweep_on("2026-11-20") == [0]
        assert deliveries() == []

    def test_it_counts_days_in_the_organisations_time_zone(self, settings: Settings) -> None:
        for zone in ("Pacific/Kiritimati", "Etc/GMT+12"):
            settings.TIME_ZONE = zone
            before = datetime.now(ZoneInfo(zone)).date()
            assert before <= today() <= datetime.now(ZoneInfo(zone)).date()

    @pytest.mark.usefixtures("noon")
    def test_it_sweeps_today_unless_told_otherwise(self) -> None:
        make_record(expires_on=today() + timedelta(days=60))
        make_record("A-2", expires_on=today() + timedelta(days=61))
        swept = sweep()
        assert (swept["on"], swept["due"], swept["to_send"]) == (str(today()), 1, 1)
        assert Run.objects.get().args == f"[{Delivery.objects.get().pk}]"

    @pytest.mark.parametrize("on", ["20.11.2026", "20261120", "2026-02-30", ""])
    def test_it_refuses_what_is_no_date(self, on: str) -> None:
        with pytest.raises(PermanentError, match="on must be a date such as 2026-11-20"):
            sweep(on)


class TestEachDelivery:
    def test_it_has_a_run_of_its_own(self) -> None:
        make_record("A-1")
        make_record("A-2", requester_email="ben@example.org")
        sweep_on("2026-11-20")
        rows = Delivery.objects.order_by("record_id")
        assert [row.recipient for row in rows] == ["ada@example.org", "ben@example.org"]
        for delivery in rows:
            run = Run.objects.get(args__startswith=f"[{delivery.pk},")
            assert run.pk == delivery.run_id
            assert run.task == "notifications.tasks.deliver"
            assert run.args == f'[{delivery.pk}, "2026-11-20"]'
            assert run.state == "scheduled"

    def test_its_run_is_written_with_it_or_neither_is(self) -> None:
        make_record()
        takes_one_argument_only = sweep
        with pytest.raises(EnqueueError):
            sweeps.sweep(takes_one_argument_only, date(2026, 11, 20), call_on="2026-11-20")
        assert deliveries() == []

    def test_it_is_tried_twelve_times(self) -> None:
        assert deliver.max_attempts == 12


class TestOnce:
    def test_a_second_sweep_adds_nothing(self) -> None:
        make_record()
        assert sweep_on("2026-11-20", "2026-11-20", "2026-11-21", "2027-01-19") == [1, 0, 0, 0]

    def test_a_day_without_a_sweep_loses_nothing(self) -> None:
        make_record()
        assert sweep_on("2026-11-19", "2026-12-24") == [0, 1]

    def test_an_extended_record_is_reminded_again_of_its_new_date(self) -> None:
        make_record(expires_on=date(2027, 1, 19))
        assert sweep_on("2026-11-20") == [1]
        settle(sent=True)
        LifecycleId.objects.update(expires_on=date(2027, 7, 1))
        assert sweep_on("2026-11-21", "2027-05-02", "2027-05-03") == [0, 1, 0]
        assert deliveries() == [
            ("A-1", "2027-01-19", 60, "sent"),
            ("A-1", "2027-07-01", 60, "pending"),
        ]

    def test_a_date_that_was_told_is_not_told_again_when_the_record_moves_back(self) -> None:
        make_record(expires_on=date(2027, 1, 19))
        sweep_on("2026-11-20")
        settle(sent=True)
        LifecycleId.objects.update(expires_on=date(2027, 7, 1))
        sweep_on("2026-11-21")
        LifecycleId.objects.update(expires_on=date(2027, 1, 19))
        assert sweep_on("2026-11-22") == [0]

    def test_a_date_that_was_not_told_is_told_when_the_record_moves_back(self) -> None:
        make_record(expires_on=date(2027, 1, 19))
        sweep_on("2026-11-20")
        LifecycleId.objects.update(expires_on=date(2027, 7, 1))
        settle(sent=False)
        assert deliveries() == [("A-1", "2027-01-19", 60, "superseded")]
        first_run = Delivery.objects.get().run_id

        LifecycleId.objects.update(expires_on=date(2027, 1, 19), requester_email="ben@example.org")
        assert sweep_on("2026-11-23", "2026-11-23") == [1, 0]
        delivery = Delivery.objects.with_state().get()
        assert (delivery.state, delivery.recipient) == ("pending", "ben@example.org")
        assert delivery.run_id != first_run

    def test_a_record_that_was_retired_and_is_active_again_is_reminded(self) -> None:
        make_record()
        sweep_on("2026-11-20")
        LifecycleId.objects.update(status="retired")
        settle(sent=False)
        assert sweep_on("2026-11-21") == [0]
        LifecycleId.objects.update(status="active")
        assert sweep_on("2026-11-22") == [1]

    def test_a_record_that_was_deleted_and_imported_again_is_not_reminded_twice(self) -> None:
        make_record()
        sweep_on("2026-11-20")
        settle(sent=True)
        LifecycleId.objects.all().delete()
        make_record()
        assert sweep_on("2026-11-21") == [0]

    def test_a_failed_delivery_is_not_made_again(self) -> None:
        make_record()
        sweep_on("2026-11-20")
        Delivery.objects.update(run_id=make_run("failed").pk)
        assert sweep_on("2026-11-21") == [0]
        assert deliveries() == [("A-1", "2027-01-19", 60, "failed")]


class TestLeadTimes:
    def test_each_is_told_when_it_is_reached(self) -> None:
        make_reminder(30), make_reminder(7)
        make_record(expires_on=date(2027, 1, 19))
        days = ("2026-11-20", "2026-12-19", "2026-12-20", "2027-01-11", "2027-01-12", "2027-01-19")
        assert sweep_on(*days) == [1, 0, 1, 0, 1, 0]

    def test_the_smallest_that_applies_sends_and_the_others_are_superseded(self) -> None:
        make_reminder(30), make_reminder(7)
        make_record(expires_on=date(2027, 1, 19))
        assert sweep_on("2027-01-14", "2027-01-15") == [1, 0]
        assert sorted(deliveries(), key=lambda row: row[2]) == [
            ("A-1", "2027-01-19", 7, "pending"),
            ("A-1", "2027-01-19", 30, "superseded"),
            ("A-1", "2027-01-19", 60, "superseded"),
        ]
        assert Run.objects.count() == 1
        assert set(
            Delivery.objects.in_state("superseded").values_list("superseded_because", flat=True)
        ) == {"a smaller lead time applies"}

    def test_a_larger_one_that_is_added_later_sends_nothing(self) -> None:
        make_record()
        sweep_on("2026-12-01")
        make_reminder(90)
        assert sweep_on("2026-12-02") == [0]
        assert ("A-1", "2027-01-19", 90, "superseded") in deliveries()

    def test_a_larger_one_sends_nothing_either_when_the_smaller_one_is_switched_off(self) -> None:
        make_record()
        sweep_on("2026-12-01")
        Reminder.objects.update(enabled=False)
        make_reminder(90)
        assert sweep_on("2026-12-02") == [0]

    def test_a_smaller_one_that_is_added_later_sends_when_it_is_reached(self) -> None:
        make_record()
        sweep_on("2026-11-20")
        make_reminder(30)
        assert sweep_on("2026-11-21", "2026-12-20") == [0, 1]

    def test_one_that_is_switched_off_is_as_if_it_were_not_there(self) -> None:
        make_record()
        Reminder.objects.update(enabled=False)
        assert sweep_on("2026-11-20") == [0]
        assert deliveries() == []

    def test_zero_days_before_is_the_day_of_the_expiry(self) -> None:
        Reminder.objects.update(days_before=0)
        make_record(expires_on=date(2027, 1, 19))
        assert sweep_on("2027-01-18", "2027-01-19") == [0, 1]


class TestManyRecords:
    @pytest.fixture(autouse=True)
    def _small_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sweeps, "CHUNK", 10)

    @pytest.fixture
    def hundred(self, db: None) -> None:
        """Hundred records, of which fifty expire within the lead time, ten on each of five days."""
        LifecycleId.objects.bulk_create(
            LifecycleId(
                lcid=f"A-{number}",
                name=f"System {number}",
                expires_on=date(2027, 1, 15) + timedelta(days=number // 10),
                requester_email=f"requester-{number}@example.org",
            )
            for number in reversed(range(100))
        )

    @pytest.mark.usefixtures("hundred")
    def test_it_finds_each_across_chunks(self) -> None:
        assert sweep_on("2026-11-20") == [50]
        due = LifecycleId.objects.filter(expires_on__lte="2027-01-19").values_list(
            "lcid", flat=True
        )
        assert set(due) == set(Delivery.objects.values_list("record__lcid", flat=True))
        runs = set(Run.objects.values_list("id", flat=True))
        assert runs == set(Delivery.objects.values_list("run_id", flat=True))

    @pytest.mark.usefixtures("hundred")
    def test_its_statements_grow_with_the_chunks_alone(
        self, django_assert_max_num_queries: DjangoAssertNumQueries
    ) -> None:
        with django_assert_max_num_queries(5 * 8 + 2):
            sweep_on("2026-11-20")

    @pytest.mark.usefixtures("hundred")
    def test_one_that_was_killed_is_finished_by_the_next(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pages = []

        def settle_two(page: list[sweeps.Place], *args: object) -> list[object]:
            pages.append(page)
            if len(pages) > 2:
                raise SystemExit
            return settle_page(page, *args)  # type: ignore[arg-type, return-value]

        settle_page = sweeps.settle_page
        monkeypatch.setattr(sweeps, "settle_page", settle_two)
        with pytest.raises(SystemExit):
            sweep("2026-11-20")
        assert Delivery.objects.count() == Run.objects.count() == 20
        monkeypatch.undo()
        assert sweep_on("2026-11-20") == [30]
        assert Delivery.objects.count() == Run.objects.count() == 50

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.usefixtures("hundred")
    def test_two_at_once_double_nothing(self) -> None:
        make_reminder(90)
        start, made = Barrier(3), []

        def sweep_beside() -> None:
            start.wait(timeout=10)
            made.append(sweep("2026-11-20")["to_send"])
            connection.close()

        threads = [Thread(target=sweep_beside) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        assert len(made) == 3
        assert sum(made) == Run.objects.count() == 100
        assert Delivery.objects.in_state("pending").count() == 100
        assert Delivery.objects.in_state("superseded").count() == 50
