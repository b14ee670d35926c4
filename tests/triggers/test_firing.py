"""A trigger's run, from the ledger to a real HTTP server and back."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.utils import timezone
from pytest_django import Settings
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from scheduling import clock
from scheduling.jobs import PermanentError, enqueue
from scheduling.models import Run, State
from scheduling.outgoing import sealing
from scheduling.outgoing.sealing import SealingError
from tests.scheduling.child import hint
from tests.triggers.conftest import MakeTrigger, Receiver, add_secret
from triggers import delivery, pace, pruning, rotation, streaks
from triggers.models import Attempt, Secret, Trigger, TriggerTemplate
from triggers.tasks import fire

pytestmark = pytest.mark.django_db(transaction=True)

SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + "AAAA9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def fired(name: str = "door", **args: Any) -> Run:
    """Enqueue a run of a trigger, and let a worker's child have it once."""
    run = enqueue(fire, (name,), args)
    hint(run)
    run.refresh_from_db()
    return run


def hinted_again(run: Run) -> Run:
    Run.objects.filter(pk=run.pk).update(run_at=clock.now())
    hint(Run.objects.get(pk=run.pk))
    run.refresh_from_db()
    return run


class TestTheRequest:
    def test_it_is_what_the_receiver_verifies(
        self, receiver: Receiver, make_trigger: MakeTrigger
    ) -> None:
        make_trigger(
            f"{receiver.url}/open?city=${{args.city}}",
            body={"run": "${run_id}", "n": "${args.n}", "due": "${due_at}", "at": "${run_at}"},
            headers={"Authorization": "Bearer ${secrets.token}"},
            secrets={"signing": SECRET, "token": "t0ken"},
        )
        run = fired(city="Bad Honnef", n=3)
        assert run.state == State.SUCCEEDED, run.reason
        (got,) = receiver.received
        assert (got.method, got.path) == ("POST", "/open?city=Bad%20Honnef")
        assert got.headers["Authorization"] == "Bearer t0ken"
        assert got.headers["Content-Type"] == "application/json"
        assert got.headers["webhook-id"] == str(run.pk)
        assert got.headers["Truebeat-Attempt"] == "1"
        assert got.headers["Truebeat-Due-At"] == run.due_at.isoformat().replace("+00:00", "Z")
        assert "Truebeat-Test" not in got.headers
        sent = Webhook(SECRET).verify(got.body.decode(), got.headers)
        assert sent["run"] == str(run.pk)
        assert sent["n"] == 3
        attempt = Attempt.objects.get()
        assert (attempt.run_id, attempt.number, attempt.status) == (run.pk, 1, 200)
        assert attempt.answer_text() == "thanks"
        assert attempt.address == receiver.url.removeprefix("http://")

    def test_two_secrets_sign_until_one_ends(
        self, receiver: Receiver, make_trigger: MakeTrigger
    ) -> None:
        trigger = make_trigger(receiver.url, body={}, secrets={"signing": SECRET})
        old = add_secret(trigger, "signing", OTHER, ends_at=clock.now() + timedelta(days=1))
        fired()
        Secret.objects.filter(pk=old.pk).update(ends_at=clock.now())
        fired()
        both, one = receiver.received
        for secret in (SECRET, OTHER):
            Webhook(secret).verify(both.body.decode(), both.headers)
        Webhook(SECRET).verify(one.body.decode(), one.headers)
        with pytest.raises(WebhookVerificationError):
            Webhook(OTHER).verify(one.body.decode(), one.headers)

    def test_its_id_is_the_same_for_each_attempt(
        self, receiver: Receiver, make_trigger: MakeTrigger
    ) -> None:
        make_trigger(receiver.url, body="$attempt")
        receiver.status = 503
        run = fired()
        receiver.status = 200
        assert hinted_again(run).state == State.SUCCEEDED
        first, second = receiver.received
        assert first.headers["webhook-id"] == second.headers["webhook-id"] == str(run.pk)
        assert [got.headers["Truebeat-Attempt"] for got in (first, second)] == ["1", "2"]
        assert [json.loads(got.body) for got in (first, second)] == [1, 2]

    def test_it_follows_a_shipped_template(
        self, receiver: Receiver, make_trigger: MakeTrigger
    ) -> None:
        from triggers.migrations import __name__ as package

        shipped = __import__(f"{package}.0002_templates", fromlist=["TEMPLATES"]).TEMPLATES
        for name, fields, definition in shipped:
            template = TriggerTemplate(name=f"my {name}", fields=fields, definition=definition)
            template.full_clean()
            template.save()
        make_trigger(
            "", template=TriggerTemplate.objects.get(name="my webhook"),
            fields={"url": f"{receiver.url}/hook", "data": {"n": "${args.n}"}},
        )  # fmt: skip
        run = fired(n=[1])
        assert json.loads(receiver.received[0].body)["data"] == {
            "run_id": str(run.pk), "schedule": None, "data": {"n": [1]},
            "due_at": run.due_at.isoformat().replace("+00:00", "Z"),
        }  # fmt: skip

    def test_a_slack_address_is_a_secret_of_the_shipped_template(
        self, make_trigger: MakeTrigger
    ) -> None:
        shipped = TriggerTemplate.objects.filter(name="Slack message").first()
        if shipped is None:
            from importlib import import_module

            templates = import_module("triggers.migrations.0002_templates").TEMPLATES
            name, fields, definition = next(each for each in templates if each[0][0] == "S")
            shipped = TriggerTemplate.objects.create(
                name=name, fields=fields, definition=definition
            )
        trigger = make_trigger("", template=shipped, secrets={"path": "T0/B0/xyz"})
        request = delivery.preview(trigger, {})
        assert request.url == "https://hooks.slack.com/services/%2A%2A%2A%2A%2A%2A%2A%2A"

    @pytest.mark.parametrize("name", ["gone", ""])
    def test_a_trigger_that_is_not_there_fails_at_once(self, name: str) -> None:
        run = fired(name)
        assert run.state == State.FAILED
        assert f"the trigger {name!r} does not exist" in run.reason

    def test_a_value_that_is_missing_fails_at_once_and_is_noted(
        self, receiver: Receiver, make_trigger: MakeTrigger
    ) -> None:
        make_trigger(receiver.url, body="${args.city}")
        run = fired()
        assert (run.state, receiver.received) == (State.FAILED, [])
        assert Attempt.objects.get().error == "${args.city} has no value"


class TestAnswers:
    @pytest.mark.parametrize("status", [200, 202, 204])
    def test_2xx_is_success(
        self, receiver: Receiver, make_trigger: MakeTrigger, status: int
    ) -> None:
        make_trigger(receiver.url)
        receiver.status, receiver.body = status, b""
        assert fired().state == State.SUCCEEDED

    @pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
    def test_a_refusal_that_may_pass_is_tried_again(
        self, receiver: Receiver, make_trigger: MakeTrigger, status: int
    ) -> None:
        make_trigger(receiver.url)
        receiver.status = status
        run = fired()
        assert (run.state, run.failures, run.attempt) == (State.SCHEDULED, 1, 2)
        assert f"answered {status}" in run.reason

    @pytest.mark.parametrize("status", [400, 401, 404, 422, 302])
    def test_other_refusals_fail_at_once(
        self, receiver: Receiver, make_trigger: MakeTrigger, status: int
    ) -> None:
        make_trigger(receiver.url)
        receiver.status, receiver.headers = status, {"Location": f"{receiver.url}/else"}
        run = fired()
        assert (run.state, len(receiver.received)) == (State.FAILED, 1)
        assert f"answered {status}" in run.reason

    @pytest.mark.parametrize(
        ("asked", "wait"),
        [("120", 120), ("0", 0), ("999999999", 3600), ("date", 90), ("soon", None), ("-5", None)],
    )
    def test_it_waits_as_the_receiver_asks(
        self, receiver: Receiver, make_trigger: MakeTrigger, settings: Settings,
        asked: str, wait: float | None,
    ) -> None:  # fmt: skip
        settings.RETRY_BACKOFF = timedelta(seconds=10)
        make_trigger(receiver.url)
        receiver.status = 429
        if asked == "date":
            asked = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
        receiver.headers = {"Retry-After": asked}
        began = clock.now()
        run = fired()
        waits = (run.run_at - began).total_seconds()
        low, high = (5, 15) if wait is None else (wait - 2, wait + 5)
        assert (run.state, low <= waits <= high) == (State.SCHEDULED, True), waits

    def test_it_gives_up_after_twelve_attempts(
        self, receiver: Receiver, make_trigger: MakeTrigger
    ) -> None:
        make_trigger(receiver.url)
        receiver.status, receiver.headers = 503, {"Retry-After": "0"}
        run = fired()
        for _ in range(11):
            assert run.state == State.SCHEDULED
            hinted_again(run)
        assert (run.state, Attempt.objects.count()) == (State.FAILED, 12)

    def test_a_receiver_that_is_away_is_tried_again(
        self, receiver: Receiver, make_trigger: MakeTrigger
    ) -> None:
        make_trigger(receiver.url)
        receiver.close()
        run = fired()
        assert run.state == State.SCHEDULED
        assert "refused" in Attempt.objects.get().error

    def test_410_disables_the_trigger_and_notifies_its_owner(
        self, receiver: Receiver, make_trigger: MakeTrigger
    ) -> None:
        trigger = make_trigger(receiver.url, owner="ada@example.org")
        receiver.status = 410
        assert fired().state == State.FAILED
        trigger.refresh_from_db()
        assert not trigger.enabled
        assert "answered 410" in trigger.disabled_reason
        assert "the trigger door was disabled" in Run.objects.get(task=streaks.NOTIFY).args
        assert "the trigger door is disabled. " in fired().reason
        assert len(receiver.received) == 1

    def test_answers_are_kept_to_4_kib_without_secrets(
        self, receiver: Receiver, make_trigger: MakeTrigger
    ) -> None:
        make_trigger(receiver.url, secrets={"signing": SECRET, "unused": "t0ken"})
        receiver.body = b"your t0ken: " + b"x" * 5000
        fired()
        text = Attempt.objects.get().answer_text()
        assert text.startswith("your ********: xxx")
        assert len(text) <= 4100

    def test_a_binary_answer_is_shown_as_such(self) -> None:
        attempt = Attempt(answer=b"\x89PNG\r\n\x1a\n\xff\xff\xff\xff\xff")
        assert attempt.answer_text() == "13 bytes, not text: 89 50 4e 47 0d 0a 1a 0a ff ff ff ff ff"
        assert Attempt(answer="aü".encode()[:-1]).answer_text() == "a"
        assert Attempt(answer=b"a\0b").answer_text().startswith("3 bytes, not text")


class TestAddresses:
    @pytest.mark.parametrize(
        "host",
        ["127.0.0.1", "localhost", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.0.1",  # noqa: S104
         "100.64.0.1", "169.254.169.254", "192.0.0.192", "168.63.129.16", "192.88.99.1",
         "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "240.0.0.1",
         "255.255.255.255", "2130706433", "0x7f000001", "0177.0.0.1", "127.1",
         "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[::127.0.0.1]",
         "[64:ff9b::7f00:1]", "[64:ff9b::a00:1]", "[64:ff9b:1::1]", "[2002:7f00:1::]",
         "[2002:a00:1::]", "[fe80::1]", "[fc00::1]", "[fec0::1]", "[ff02::1]",
         "[2001:db8::1]", "[2001::1]", "[3fff::1]", "[2606:4700::5efe:7f00:1]"],
    )  # fmt: skip
    def test_a_trigger_leads_to_no_address_inside(
        self, make_trigger: MakeTrigger, settings: Settings, host: str
    ) -> None:
        settings.OUTGOING_ALLOW, settings.ALERT_ALLOW_PRIVATE = [], False
        make_trigger(f"http://{host}/")
        run = fired()
        assert run.state == State.FAILED, run.reason
        assert "is not a global address" in run.reason

    def test_only_the_networks_of_the_setting_are_let_through(
        self, receiver: Receiver, make_trigger: MakeTrigger, settings: Settings
    ) -> None:
        make_trigger(receiver.url)
        settings.OUTGOING_ALLOW = ["127.0.0.2/32"]
        assert fired().state == State.FAILED
        settings.OUTGOING_ALLOW = ["127.0.0.1/32"]
        assert fired().state == State.SUCCEEDED


class TestRateLimit:
    def test_a_run_whose_turn_is_far_becomes_a_row_again_without_a_failure(
        self, receiver: Receiver, make_trigger: MakeTrigger
    ) -> None:
        make_trigger(receiver.url, per_minute=6)
        began = clock.now()
        runs = [fired(n=1) for _ in range(3)]
        assert [run.state for run in runs] == [State.SUCCEEDED, State.SCHEDULED, State.SCHEDULED]
        assert [run.failures for run in runs] == [0, 0, 0]
        waits = [(run.run_at - began).total_seconds() for run in runs[1:]]
        assert 9 <= waits[0] <= 12
        assert 19 <= waits[1] <= 22
        assert len(receiver.received) == 1
        Trigger.objects.update(next_at=clock.now())
        assert hinted_again(runs[1]).state == State.SUCCEEDED
        assert json.loads(runs[1].kwargs) == {"n": 1}

    def test_a_turn_within_a_second_is_waited_for(self, make_trigger: MakeTrigger) -> None:
        trigger = make_trigger("https://example.org/", per_minute=120)
        turns = [pace.take_turn(trigger.pk) for _ in range(4)]
        assert [may for may, _ in turns] == [True, True, True, False]
        assert 0.3 <= turns[1][1] <= 0.5
        assert 0.8 <= turns[2][1] <= 1.0

    def test_without_a_limit_nobody_waits(self, make_trigger: MakeTrigger) -> None:
        trigger = make_trigger("https://example.org/")
        assert pace.take_turn(trigger.pk) == (True, 0.0)


class TestFailingForDays:
    START = datetime(2026, 11, 20, 12, tzinfo=UTC)

    def test_it_is_disabled_after_five_days_with_a_warning_a_day_before(
        self, make_trigger: MakeTrigger
    ) -> None:
        trigger = make_trigger("https://example.org/", owner="ada@example.org, bob@example.org")
        seen = []
        for hours in range(0, 24 * 5 + 1, 12):
            streaks.note_failure(trigger.pk, "no", self.START + timedelta(hours=hours))
            trigger.refresh_from_db()
            seen.append((hours, trigger.enabled, Run.objects.count()))
        assert [row for row in seen if row[0] in (84, 96, 108, 120)] == [
            (84, True, 0), (96, True, 2), (108, True, 2), (120, False, 4),
        ]  # fmt: skip

    def test_one_that_is_fired_seldom_is_warned_before_it_is_disabled(
        self, make_trigger: MakeTrigger
    ) -> None:
        trigger = make_trigger("https://example.org/")
        enabled = []
        for days in (0, 7, 14):
            streaks.note_failure(trigger.pk, "no", self.START + timedelta(days=days))
            trigger.refresh_from_db()
            enabled.append(trigger.enabled)
        assert enabled == [True, True, False]

    def test_a_success_ends_the_streak(self, make_trigger: MakeTrigger) -> None:
        trigger = make_trigger("https://example.org/")
        for days in (0, 4):
            streaks.note_failure(trigger.pk, "no", self.START + timedelta(days=days))
        streaks.note_success(trigger.pk)
        streaks.note_failure(trigger.pk, "no", self.START + timedelta(days=6))
        trigger.refresh_from_db()
        assert (trigger.enabled, trigger.warned_at) == (True, None)
        assert trigger.failing_since == self.START + timedelta(days=6)

    def test_enabling_begins_anew(self, make_trigger: MakeTrigger) -> None:
        trigger = make_trigger("https://example.org/")
        assert streaks.disable(trigger.pk, "no")
        assert not streaks.disable(trigger.pk, "no")
        assert streaks.enable(trigger.pk)
        trigger.refresh_from_db()
        assert (trigger.enabled, trigger.disabled_reason) == (True, "")


class TestSecrets:
    def test_they_are_encrypted_and_bound_to_their_row(self, make_trigger: MakeTrigger) -> None:
        trigger = make_trigger("https://example.org/", secrets={"a": "one", "b": "two"})
        first, second = trigger.secrets.order_by("name")
        assert "one" not in first.sealed
        assert (first.unseal(), second.unseal()) == ("one", "two")
        first.sealed = second.sealed
        with pytest.raises(SealingError, match="was encrypted for"):
            first.unseal()

    def test_rotation_encrypts_all_with_the_newest_key(
        self, make_trigger: MakeTrigger, settings: Settings, secrets_key: str
    ) -> None:
        from cryptography.fernet import Fernet

        trigger = make_trigger("https://example.org/", secrets={"a": "one", "b": "two"})
        new = Fernet.generate_key().decode()
        settings.SECRETS_KEYS = [new, secrets_key]
        assert rotation.rotate() == 2
        settings.SECRETS_KEYS = [new]
        assert sorted(secret.unseal() for secret in trigger.secrets.all()) == ["one", "two"]
        settings.SECRETS_KEYS = [secrets_key]
        with pytest.raises(SealingError, match="a key that SECRETS_KEYS does not have"):
            trigger.secrets.first().unseal()  # type: ignore[union-attr]

    def test_without_a_key_none_is_stored(self, settings: Settings) -> None:
        settings.SECRETS_KEYS = []
        with pytest.raises(SealingError, match="set SECRETS_KEYS"):
            sealing.seal("one", "here")


class TestByHand:
    def test_a_test_is_marked_and_previews_mask_secrets(
        self, receiver: Receiver, make_trigger: MakeTrigger, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make_trigger(
            f"{receiver.url}/${{secrets.path}}", body={"city": "${args.city}"},
            headers={"X-Token": "${secrets.token}"},
            secrets={"signing": SECRET, "token": "t0ken", "path": "hid/den"},
        )  # fmt: skip
        call_command("trigger", "preview", "door")
        assert receiver.received == []
        call_command("trigger", "test", "door", "--args", '{"city": "Bonn"}')
        shown = capsys.readouterr().out
        for hidden in (SECRET, "t0ken", "hid"):
            assert hidden not in shown
        assert '{"city": "<city>"}' in shown
        assert "answered 200" in shown
        (got,) = receiver.received
        assert got.headers["Truebeat-Test"] == "1"
        assert got.path == "/hid/den"
        Webhook(SECRET).verify(got.body.decode(), got.headers)
        assert Attempt.objects.get().is_test

    def test_what_failed_is_sent_again_once(
        self, receiver: Receiver, make_trigger: MakeTrigger, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make_trigger(receiver.url, name="a")
        make_trigger(receiver.url, name="b")
        receiver.status = 400
        failed = fired("a")
        fired("b")
        call_command("trigger", "resend", "a", "--since", "1h", "--dry-run")
        assert "would resend 1 failed runs of a" in capsys.readouterr().out
        assert Run.objects.filter(replay_of__isnull=False).count() == 0
        for made in ("1", "0"):
            call_command("trigger", "resend", "a", "--since", "1h")
            assert f"resends {made} failed runs of a" in capsys.readouterr().out
        assert Run.objects.get(replay_of__isnull=False).replay_of == failed.pk

    def test_an_unknown_trigger_is_refused(self) -> None:
        with pytest.raises(CommandError, match="the trigger 'x' does not exist"):
            call_command("trigger", "preview", "x")

    def test_the_list_shows_states(
        self, make_trigger: MakeTrigger, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make_trigger("https://example.org/")
        call_command("trigger", "list")
        assert "door" in capsys.readouterr().out


def test_old_attempts_are_pruned(make_trigger: MakeTrigger, settings: Settings) -> None:
    trigger = make_trigger("https://example.org/")
    settings.KEEP_FAILED = timedelta(days=10)
    now = timezone.now()
    for days in (1, 20):
        Attempt.objects.create(trigger=trigger, at=now - timedelta(days=days))
    assert pruning.prune() == 1
    assert Attempt.objects.count() == 1


def test_a_plain_call_sends_too(receiver: Receiver, make_trigger: MakeTrigger) -> None:
    make_trigger(receiver.url)
    assert fire("door")["status"] == 200
    with pytest.raises(PermanentError, match="does not exist"):
        fire("gone")


def test_a_trigger_that_does_not_fit_its_template_is_refused(make_trigger: MakeTrigger) -> None:
    template = TriggerTemplate.objects.create(
        name="t", fields={"n": {"type": "number"}}, definition={"url": "https://example.org/"}
    )
    with pytest.raises(ValidationError, match=r"fields\.n: the template needs it"):
        make_trigger("", template=template)
