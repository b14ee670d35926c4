"""Messages to owners, sent by real mail and to a real webhook."""

import json
from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from pytest_django import Settings

from scheduling import clock, shapes
from scheduling.checks.project import check_alerts_to
from scheduling.failures import alerts
from scheduling.jobs import PermanentError
from scheduling.models import FailureGroup, News, Policy, Run, State
from scheduling.outgoing import addresses
from scheduling.tasks import alert, tell
from tests.mail_server import MailServer
from tests.scheduling.failures.test_groups import fail, settle
from tests.scheduling.ledger import schedule
from tests.scheduling.outgoing.test_webhooks import Hook, hook

__all__ = ["hook"]

pytestmark = pytest.mark.django_db

ANN, BEN, TEAM = "ann@example.org", "ben@example.org", "team@example.org"


@pytest.fixture(autouse=True)
def _the_team_is_told_of_the_rest(settings: Settings) -> None:
    settings.ALERTS_TO = [TEAM]


def written() -> dict[str, dict[str, Any]]:
    """Return the messages that wait to be sent, by address."""
    calls = [json.loads(run.args) for run in Run.objects.filter(task=alerts.TELL)]
    assert len(calls) == len({address for address, _ in calls})
    return dict(calls)


class TestWhoIsTold:
    def test_each_owner_is_told_of_what_hit_their_schedules(self) -> None:
        fail(schedule("a", policy={"owner": f"{ANN}, {BEN}"}), "ValueError: x")
        fail(schedule("b", policy={"owner": ANN}), "KeyError: x")
        fail(error="OSError: x")
        settle()
        assert alert() == 3
        told = {
            address: {failure["exception"] for failure in message["failures"]}
            for address, message in written().items()
        }
        assert told == {ANN: {"ValueError", "KeyError"}, BEN: {"ValueError"}, TEAM: {"OSError"}}

    def test_what_hits_an_owned_schedule_and_others_is_told_to_both(self) -> None:
        fail(schedule("a", policy={"owner": ANN}))
        fail(schedule("b"))
        settle()
        alert()
        assert written().keys() == {ANN, TEAM}

    def test_nothing_is_told_twice(self) -> None:
        fail()
        settle()
        assert [alert(), alert()] == [1, 0]

    def test_a_schedule_that_was_removed_is_told_to_the_team(self) -> None:
        row = schedule(policy={"owner": ANN})
        fail(row)
        settle()
        row.delete()
        alert()
        assert written().keys() == {TEAM}


class TestTheMessage:
    def test_its_form_is_what_the_documents_say(self) -> None:
        row = schedule("nightly")
        fail(row)
        last = fail(row)
        settle()
        alert()
        message = written()[TEAM]
        at = message.pop("at")
        (failure,) = message.pop("failures")
        group = FailureGroup.objects.get()
        assert at.endswith("Z")
        assert message.pop("text").startswith("ValueError in tests.jobs.tasks.add: new\n")
        assert message == {
            "version": 1,
            "event": "failures",
            "subject": "ValueError in tests.jobs.tasks.add (new)",
            "more": 0,
        }
        assert failure == {
            "id": str(group.pk),
            "news": "new",
            "task": "tests.jobs.tasks.add",
            "exception": "ValueError",
            "place": "",
            "count": 2,
            "since_last_told": 2,
            "first_seen_at": shapes.instant(group.first_seen_at),
            "last_seen_at": shapes.instant(group.last_seen_at),
            "error": "ValueError: x",
            "run": str(last.pk),
            "schedules": ["nightly"],
            "told_at": None,
            "resolved_at": None,
            "resolved_by": "",
        }

    def test_what_was_held_back_is_counted_in_the_next(self) -> None:
        fail()
        settle()
        alert()
        for _ in range(4):
            fail()
        settle()
        assert alert() == 0
        FailureGroup.objects.update(told_at=clock.now() - timedelta(days=1))
        Run.objects.filter(task=alerts.TELL).delete()
        fail()
        settle()
        alert()
        (failure,) = written()[TEAM]["failures"]
        assert (failure["count"], failure["since_last_told"]) == (6, 5)

    def test_a_storm_of_kinds_is_one_message(self) -> None:
        for n in range(50):
            fail(error=f"Error{n}: {'x' * 5_000}")
        settle()
        assert alert() == 1
        message = written()[TEAM]
        assert (len(message["failures"]), message["more"]) == (alerts.LISTED, 30)
        assert "and 49 more" in message["subject"]
        assert len(json.dumps(message)) < 40_000

    def test_a_new_line_in_a_name_writes_no_header(self, mail_server: MailServer) -> None:
        fail(error="ValueError: x\r\nBcc: x@example.org", task="a\nb")
        settle()
        alert()
        tell(TEAM, written()[TEAM])
        (mail,) = mail_server.accepted
        assert mail["Subject"] == "[Truebeat] ValueError in a b (new)"
        assert mail["Bcc"] is None


class TestThrottling:
    def test_one_run_tells_of_all_that_is_news(self) -> None:
        fail()
        settle()
        first, second = alerts.call(), alerts.call()
        assert (first.created, second.created) == (True, False)
        assert timedelta(0) < first.run_at - clock.now() <= alerts.GATHER

    def test_the_next_message_keeps_its_distance(self, settings: Settings) -> None:
        settings.ALERT_PACE = timedelta(minutes=5)
        fail()
        settle()
        alert()
        wait = alerts.call().run_at - clock.now()
        assert timedelta(minutes=4, seconds=50) < wait <= timedelta(minutes=5)


class TestByMail:
    def test_it_arrives(self, mail_server: MailServer) -> None:
        fail()
        settle()
        alert()
        assert tell(TEAM, written()[TEAM]) == "sent"
        (mail,) = mail_server.accepted
        assert mail["To"] == TEAM
        assert mail["Subject"] == "[Truebeat] ValueError in tests.jobs.tasks.add (new)"
        assert mail["Auto-Submitted"] == "auto-generated"
        assert mail["Message-ID"].startswith("<alert-")
        body = mail.get_body()
        assert body is not None
        assert "manage.py run show" in body.get_content()

    def test_a_refused_address_is_for_good(self, mail_server: MailServer) -> None:
        mail_server.on_recipient = "550 no such user"
        with pytest.raises(PermanentError, match="550 no such user"):
            tell(TEAM, {"subject": "s", "text": "t"})

    def test_a_server_that_is_down_is_tried_again(self, mail_settings: int) -> None:
        with pytest.raises(ConnectionRefusedError):
            tell(TEAM, {"subject": "s", "text": "t"})

    def test_what_is_no_address_is_for_good(self) -> None:
        with pytest.raises(PermanentError, match="is not a mail address"):
            tell("ann", {"subject": "s", "text": "t"})


class TestByWebhook:
    def test_it_arrives_with_an_id(self, hook: Hook) -> None:
        message = {"version": 1, "event": "failures", "subject": "s", "text": "t"}
        assert tell(hook.url, message) == "answered 204"
        ((_, headers, body),) = hook.calls
        assert body == {"id": headers["Idempotency-Key"], **message}

    def test_a_server_in_trouble_is_tried_again(self, hook: Hook) -> None:
        hook.status = 503
        with pytest.raises(OSError, match="answered 503"):
            tell(hook.url, {"subject": "s", "text": "t"})


class TestOwners:
    @pytest.mark.parametrize(
        "text",
        ["", ANN, f"{ANN}, {BEN}", f"{ANN} https://example.org/hook?a=b", "https://x.example:8443"],
    )
    def test_these_can_be_told(self, text: str) -> None:
        addresses.validate(text)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("ann", "'ann' is not a mail address"),
            ("the billing team", "'the' is not a mail address"),
            (f"{ANN}, ben@", "'ben@' is not a mail address"),
            ("http://example.org/", "begins with http://"),
            ("ftp://example.org/", "begins with ftp://"),
            ("https://", "is not a URL with a host"),
            ("https://ann:pw@example.org/", "has a user or a password in it"),
            ("https://example.org:99999/", "cannot be read"),
            ("https://[::1/", "cannot be read"),
            ("https://exämple.org/", "is not a URL with a host"),
            ("https://example.org/\x00", "is not a URL with a host"),
        ],
    )
    def test_these_cannot(self, text: str, words: str) -> None:
        with pytest.raises(ValidationError, match=words):
            addresses.validate(text)

    def test_plain_http_is_for_development(self, settings: Settings) -> None:
        settings.ALERT_ALLOW_PRIVATE = True
        addresses.validate("http://127.0.0.1:8000/")

    def test_the_policy_checks_its_owner(self) -> None:
        policy = Policy(schedule=schedule(), owner="the team")
        with pytest.raises(ValidationError, match="not a mail address"):
            policy.full_clean()

    def test_each_is_told_once(self) -> None:
        assert addresses.split(f" {ANN},{ANN} , {BEN}\n") == [ANN, BEN]


def test_a_check_says_who_cannot_be_told(settings: Settings) -> None:
    assert check_alerts_to(None) == []
    settings.ALERTS_TO = [TEAM, "the team"]
    (error,) = check_alerts_to(None)
    assert "'the' is not a mail address" in error.msg


def test_its_own_failures_make_no_news() -> None:
    for _ in range(5):
        fail(task=alerts.TELL)
    settle()
    assert FailureGroup.objects.get().news == ""
    assert not Run.objects.filter(state=State.SCHEDULED).exists()
    assert set(alerts.WORDS) == set(News)
