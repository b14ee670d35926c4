"""The admin's pages of triggers."""

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from tests.triggers.conftest import MakeTrigger, Receiver
from triggers.models import Attempt, Trigger, TriggerTemplate

pytestmark = pytest.mark.django_db(transaction=True)


def form(**changes: Any) -> dict[str, Any]:
    return {
        "name": "door", "description": "", "owner": "", "per_minute": "", "template": "",
        "fields": "{}", "kind": "http", "url": "https://example.org/", "method": "POST",
        "headers": "{}", "body": "null", "exchange": "", "routing_key": "", "properties": "{}",
        "secrets-TOTAL_FORMS": "1", "secrets-INITIAL_FORMS": "0", "secrets-0-name": "signing",
        "secrets-0-value": "whsec_AAAA", **changes,
    }  # fmt: skip


def test_a_trigger_is_added_with_a_secret_that_is_never_shown(admin_client: Client) -> None:
    answer = admin_client.post(reverse("admin:triggers_trigger_add"), form())
    assert answer.status_code == 302, answer.context["errors"]
    trigger = Trigger.objects.get()
    assert trigger.secrets.get().unseal() == "whsec_AAAA"
    page = admin_client.get(reverse("admin:triggers_trigger_change", args=[trigger.pk]))
    text = page.content.decode()
    assert "whsec_" not in text
    assert "webhook-signature: ********" in text


def test_a_bad_placeholder_is_an_error_that_names_its_place(admin_client: Client) -> None:
    bad = form(body='{"a": ["${run_id.x}"]}')
    answer = admin_client.post(reverse("admin:triggers_trigger_add"), bad)
    assert "body.a[0]: ${run_id.x} is not known" in answer.content.decode()
    assert not Trigger.objects.exists()


def test_a_test_is_sent_and_a_trigger_is_disabled_and_enabled(
    admin_client: Client, receiver: Receiver, make_trigger: MakeTrigger
) -> None:
    trigger = make_trigger(receiver.url)
    chosen = {"_selected_action": [str(trigger.pk)]}
    pages = [
        admin_client.post(
            reverse("admin:triggers_trigger_changelist"), {"action": action, **chosen}, follow=True
        ).content.decode()
        for action in ("send_test", "disable", "enable")
    ]
    assert "answered 200" in pages[0]
    assert "Disabled 1." in pages[1]
    assert "Enabled 1." in pages[2]
    attempt = Attempt.objects.get()
    for name, pk in (("attempt", attempt.pk), ("trigger", trigger.pk)):
        page = admin_client.get(reverse(f"admin:triggers_{name}_change", args=[pk]))
        assert "thanks" in page.content.decode()


def test_a_template_says_how_many_triggers_follow_it(admin_client: Client) -> None:
    template = TriggerTemplate.objects.create(name="t", definition={"url": "https://example.org/"})
    Trigger.objects.create(name="a", template=template)
    page = admin_client.get(reverse("admin:triggers_triggertemplate_change", args=[template.pk]))
    assert "triggers that follow it" in page.content.decode().lower()
    listed = admin_client.get(reverse("admin:triggers_triggertemplate_changelist"))
    assert '<td class="field-followers">1</td>' in listed.content.decode()
