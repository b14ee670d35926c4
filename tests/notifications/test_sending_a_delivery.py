import smtplib
from datetime import date, timedelta
from typing import Any

import psycopg
import pytest
from django.conf import settings as django_settings
from django.core import mail as outbox
from django.db import connection
from django.utils import timezone

from notifications.dates import today
from notifications.delivery import deliver as deliver_for
from notifications.mail import message_id
from notifications.models import Delivery, LifecycleId
from notifications.tasks import deliver
from scheduling.history.replaying import replay
from scheduling.jobs import PermanentError
from scheduling.models import Run, State
from tests.mail_server import MailServer
from tests.notifications.factories import make_delivery, make_record, make_reminder, make_run

pytestmark = pytest.mark.django_db


def state() -> str:
    return str(Delivery.objects.with_state().latest("id").state)


class TestTheMail:
    def test_it_arrives_and_is_noted(self, mail_server: MailServer) -> None:
        delivery = make_delivery()
        assert deliver(delivery.pk, "2026-11-20") == "sent"
        (message,) = mail_server.accepted
        assert mail_server.recipients == ["ada@example.org"]
        assert message["To"] == "Ada Moreau <ada@example.org>"
        assert message["Subject"] == "A-1 expires in 60 days: Grants portal 4"
        assert message["Message-ID"] == message_id(delivery)
        assert message["Message-ID"].startswith(f"<delivery-{delivery.pk}@")
        assert message["Auto-Submitted"] == "auto-generated"
        delivery.refresh_from_db()
        assert delivery.sent_at is not None
        assert delivery.recipient == "ada@example.org"

    @pytest.mark.parametrize("kind", ["plain", "html"])
    def test_both_its_parts_say_what_expires_when_and_what_to_do(
        self, mail_server: MailServer, kind: str
    ) -> None:
        deliver(make_delivery(make_record(issued_on=date(2024, 1, 20))).pk, "2026-11-20")
        body = mail_server.accepted[0].get_body((kind,))
        assert body is not None
        text = body.get_content()
        for words in (
            "Dear Ada Moreau",
            "Grants portal 4",
            "A-1",
            "20 January 2024",
            "19 January 2027",
            "expires in 60 days",
            "Reply to this message before 19 January 2027",
            "extended",
        ):
            assert words in text

    @pytest.mark.parametrize(
        ("on", "words"),
        [
            ("2027-01-18", "A-1 expires in 1 day:"),
            ("2027-01-19", "A-1 expires today:"),
            ("2027-01-20", "A-1 expired 1 day ago:"),
            ("2027-01-29", "A-1 expired 10 days ago:"),
        ],
    )
    def test_it_tells_the_days_that_are_left_when_it_is_sent(self, on: str, words: str) -> None:
        deliver(make_delivery().pk, on)
        assert outbox.outbox[0].subject.startswith(words)

    @pytest.mark.usefixtures("noon")
    def test_it_counts_from_today(self) -> None:
        deliver(make_delivery(make_record(expires_on=today() + timedelta(days=5))).pk)
        assert "expires in 5 days" in outbox.outbox[0].subject

    def test_names_cannot_write_headers_or_html(self) -> None:
        record = make_record(name="A <b>\nBcc: x@example.org", requester_name="Mo, Ada\r\n <i>")
        deliver(make_delivery(record).pk, "2026-11-20")
        message: Any = outbox.outbox[0]
        assert message.subject == "A-1 expires in 60 days: A <b> Bcc: x@example.org"
        assert message.to == ['"Mo, Ada <i>" <ada@example.org>']
        assert "<b>" in message.body
        assert "<b>" not in message.alternatives[0].content
        assert "&lt;b&gt;" in message.alternatives[0].content

    def test_it_greets_a_requester_without_a_name(self) -> None:
        deliver(make_delivery(make_record(requester_name="")).pk, "2026-11-20")
        assert outbox.outbox[0].body.startswith("Hello,\n")
        assert outbox.outbox[0].to == ["ada@example.org"]


class TestFailures:
    @pytest.mark.parametrize(
        ("step", "answer"),
        [
            ("on_sender", "550 not you"),
            ("on_recipient", "550 no such user"),
            ("on_data", "554 no"),
        ],
    )
    def test_a_refusal_is_permanent(self, mail_server: MailServer, step: str, answer: str) -> None:
        setattr(mail_server, step, answer)
        delivery = make_delivery()
        with pytest.raises(PermanentError, match=answer):
            deliver(delivery.pk, "2026-11-20")
        assert state() == "pending"
        assert mail_server.accepted == []

    def test_a_refused_address_is_named(self, mail_server: MailServer) -> None:
        mail_server.on_recipient = "550 no such user"
        with pytest.raises(PermanentError, match=r"ada@example\.org refused: 550 no such user"):
            deliver(make_delivery().pk, "2026-11-20")

    @pytest.mark.parametrize(
        ("step", "answer", "error"),
        [
            ("on_sender", "451 later", smtplib.SMTPSenderRefused),
            ("on_sender", "530 authentication required", smtplib.SMTPSenderRefused),
            ("on_recipient", "450 mailbox busy", smtplib.SMTPRecipientsRefused),
            ("on_data", "452 disk full", smtplib.SMTPDataError),
        ],
    )
    def test_what_may_pass_is_tried_again_and_arrives_under_the_same_id(
        self, mail_server: MailServer, step: str, answer: str, error: type[Exception]
    ) -> None:
        delivery = make_delivery()
        setattr(mail_server, step, answer)
        for _ in range(2):
            with pytest.raises(error):
                deliver(delivery.pk, "2026-11-20")
        assert state() == "pending"
        setattr(mail_server, step, "250 OK")
        assert deliver(delivery.pk, "2026-11-20") == "sent"
        assert [message["Message-ID"] for message in mail_server.accepted] == [message_id(delivery)]

    @pytest.mark.usefixtures("mail_settings")
    def test_a_server_that_is_down_is_tried_again(self) -> None:
        with pytest.raises(ConnectionRefusedError):
            deliver(make_delivery().pk, "2026-11-20")
        assert state() == "pending"

    @pytest.mark.parametrize("address", ["ada", "ada@", "a b@example.org", "ada@example.org\nx"])
    def test_what_is_no_address_is_permanent(self, address: str) -> None:
        delivery = make_delivery(make_record(requester_email=address))
        with pytest.raises(PermanentError, match=r"the requester's e-mail .* (is not a|has)"):
            deliver(delivery.pk, "2026-11-20")

    def test_a_domain_that_is_not_ascii_is_written_as_djangos_mail_writes_it(
        self, mail_server: MailServer
    ) -> None:
        record = make_record(requester_email="max@bücher.example")
        assert deliver(make_delivery(record).pk, "2026-11-20") == "sent"
        assert mail_server.recipients == ["max@xn--bcher-kva.example"]

    def test_a_delivery_that_is_not_there_is_permanent(self) -> None:
        with pytest.raises(PermanentError, match="delivery 4711 does not exist"):
            deliver(4711)

    def test_the_id_is_of_this_installation(self, settings: Any) -> None:
        settings.DEFAULT_FROM_EMAIL = "Truebeat <truebeat@agency.example>"
        delivery = make_delivery()
        other = Delivery.objects.get()
        other.created_at += timedelta(milliseconds=1)
        assert message_id(delivery).endswith(".agency.example>")
        assert message_id(delivery) != message_id(other)


class TestJustBeforeSending:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"expires_on": date(2028, 1, 19)}, "it expires on 2028-01-19 now"),
            ({"status": "retired"}, "the lifecycle id is retired now"),
        ],
    )
    def test_a_changed_record_supersedes_it(self, change: dict[str, Any], reason: str) -> None:
        delivery = make_delivery()
        LifecycleId.objects.update(**change)
        assert deliver(delivery.pk, "2026-11-20") == "superseded"
        delivery.refresh_from_db()
        assert (delivery.superseded_because, state()) == (reason, "superseded")
        assert outbox.outbox == []

    def test_a_deleted_record_supersedes_it(self) -> None:
        delivery = make_delivery()
        LifecycleId.objects.all().delete()
        assert deliver(delivery.pk, "2026-11-20") == "superseded"
        assert Delivery.objects.get().superseded_because == "the lifecycle id was deleted since"
        assert outbox.outbox == []

    @pytest.mark.parametrize("other", [{}, {"sent_at": timezone.now()}])
    def test_a_nearer_reminder_takes_its_place(self, other: dict[str, Any]) -> None:
        delivery = make_delivery()
        make_delivery(delivery.record, reminder=make_reminder(30), **other)
        assert deliver(delivery.pk, "2026-12-20") == "superseded"
        delivery.refresh_from_db()
        assert delivery.superseded_because == "the reminder of 30 days has taken its place"

    def test_a_larger_or_superseded_reminder_does_not(self) -> None:
        delivery = make_delivery()
        make_delivery(delivery.record, reminder=make_reminder(90))
        make_delivery(
            delivery.record,
            reminder=make_reminder(30),
            superseded_at=timezone.now(),
            superseded_because="extended",
        )
        assert deliver(delivery.pk, "2026-11-20") == "sent"

    def test_it_goes_to_the_address_of_now(self) -> None:
        delivery = make_delivery()
        LifecycleId.objects.update(requester_email="ben@example.org")
        deliver(delivery.pk, "2026-11-20")
        delivery.refresh_from_db()
        assert (delivery.recipient, outbox.outbox[0].recipients()) == (
            "ben@example.org",
            ["Ada Moreau <ben@example.org>"],
        )


class TestRunningItAgain:
    def test_a_sent_delivery_is_not_sent_again(self) -> None:
        delivery = make_delivery()
        assert [deliver(delivery.pk, "2026-11-20") for _ in range(3)] == ["sent"] * 3
        assert len(outbox.outbox) == 1

    def test_a_superseded_delivery_is_not_sent(self) -> None:
        delivery = make_delivery(superseded_at=timezone.now(), superseded_because="extended")
        assert deliver(delivery.pk, "2026-11-20") == "superseded"
        assert outbox.outbox == []

    def test_a_replay_of_a_failed_run_sends_it(self) -> None:
        failed = make_run(State.FAILED)
        delivery = make_delivery(run_id=failed.pk)
        again = replay(failed.pk, by="ada")
        assert deliver_for(delivery.pk, date(2026, 11, 20), run_id=again.pk) == "sent"
        delivery.refresh_from_db()
        assert delivery.run_id == again.pk
        assert len(outbox.outbox) == 1

    def test_a_replay_that_fails_is_what_the_delivery_shows(self) -> None:
        failed = make_run(State.FAILED, "550 no such user")
        delivery = make_delivery(make_record(requester_email="ada"), run_id=failed.pk)
        again = replay(failed.pk, by="ada")
        with pytest.raises(PermanentError):
            deliver_for(delivery.pk, date(2026, 11, 20), run_id=again.pk)
        assert Delivery.objects.with_state().get().run_id == again.pk
        assert state() == "pending"

    @pytest.mark.parametrize("run_state", [State.QUEUED, State.RUNNING])
    def test_of_two_replays_at_once_one_sends(self, run_state: State) -> None:
        first, second = make_run(run_state), make_run(State.RUNNING)
        delivery = make_delivery(run_id=first.pk)
        assert deliver_for(delivery.pk, date(2026, 11, 20), run_id=second.pk) == "pending"
        assert outbox.outbox == []
        assert deliver_for(delivery.pk, date(2026, 11, 20), run_id=first.pk) == "sent"

    def test_a_pruned_run_stands_in_nobodys_way(self) -> None:
        gone = make_run(State.FAILED)
        delivery = make_delivery(run_id=gone.pk)
        Run.objects.filter(pk=gone.pk).delete()
        again = make_run(State.RUNNING)
        assert deliver_for(delivery.pk, date(2026, 11, 20), run_id=again.pk) == "sent"


@pytest.mark.django_db(transaction=True)
class TestWhenPostgresGoesAway:
    def test_the_servers_yes_is_noted_when_it_is_back(self, mail_server: MailServer) -> None:
        """The connection dies between the mail's acceptance and the note of it."""
        delivery = make_delivery()
        pid = connection.connection.info.backend_pid
        mail_server.before_answer = lambda: terminate(pid)
        assert deliver(delivery.pk, "2026-11-20") == "sent"
        assert state() == "sent"
        assert len(mail_server.accepted) == 1


def terminate(pid: int) -> None:
    database = django_settings.DATABASES["default"]
    with psycopg.connect(
        host=database["HOST"] or None,
        port=database["PORT"] or None,
        user=database["USER"] or None,
        password=database["PASSWORD"] or None,
        dbname=connection.settings_dict["NAME"],
    ) as other:
        other.execute("SELECT pg_terminate_backend(%s)", [pid])
