"""Triggers that send a message through a broker: a real Redis."""

import base64
import json
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import redis
from pytest_django import Settings

from scheduling.models import State
from tests.conftest import SharedRedis
from tests.triggers.conftest import MakeTrigger
from tests.triggers.test_firing import fired
from triggers.definitions import Kind
from triggers.models import Attempt

pytestmark = pytest.mark.django_db(transaction=True)


def parts(url: str) -> dict[str, Any]:
    """Return the URL of a broker as a trigger has it: its password is a secret."""
    password = urlsplit(url).password
    if password is None:
        return {"url": url}
    return {
        "url": url.replace(f":{password}@", ":${secrets.password}@"),
        "secrets": {"password": unquote(password)},
    }


def test_a_message_arrives_in_its_queue(
    redis_client: redis.Redis, redis_server: SharedRedis, make_trigger: MakeTrigger,
    settings: Settings,
) -> None:  # fmt: skip
    settings.OUTGOING_ALLOW = ["127.0.0.0/8"]
    make_trigger(
        **parts(redis_server.url), kind=Kind.MESSAGE, routing_key="orders-${args.shop}",
        body={"run": "$run_id"},
    )  # fmt: skip
    run = fired(shop="bonn")
    assert run.state == State.SUCCEEDED, run.reason
    (found,) = redis_client.lrange("orders-bonn", 0, -1)
    message = json.loads(found)
    assert json.loads(base64.b64decode(message["body"])) == {"run": str(run.pk)}
    assert message["headers"]["webhook-id"] == str(run.pk)
    assert Attempt.objects.get().address.endswith(str(urlsplit(redis_server.url).port))


def test_a_broker_inside_is_refused(
    redis_server: SharedRedis, make_trigger: MakeTrigger, settings: Settings
) -> None:
    settings.OUTGOING_ALLOW = []
    make_trigger(**parts(redis_server.url), kind=Kind.MESSAGE, routing_key="orders")
    run = fired()
    assert run.state == State.FAILED
    assert "is not a global address" in run.reason


def test_a_broker_that_is_away_is_tried_again(
    make_trigger: MakeTrigger, settings: Settings, free_port: int
) -> None:
    settings.OUTGOING_ALLOW = ["127.0.0.0/8"]
    make_trigger(f"redis://127.0.0.1:{free_port}/0", kind=Kind.MESSAGE, routing_key="orders")
    assert fired().state == State.SCHEDULED
