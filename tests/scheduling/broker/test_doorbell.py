import time
from collections.abc import Iterator

import pytest
import redis
from django.db import transaction
from pytest_django import DjangoCaptureOnCommitCallbacks

from config.embedded import RedisServer
from scheduling.broker import doorbell
from scheduling.broker.doorbell import Listener, ring, ring_on_commit
from scheduling.ids import uuid7
from tests.scheduling.ledger import in_thread
from tests.waiting import wait_for


@pytest.fixture
def listener(redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    # A channel is one for all databases of a Redis: other tests ring theirs meanwhile.
    channel = f"scheduling.bell.{uuid7()}"
    monkeypatch.setattr(doorbell, "CHANNEL", channel)
    ear = Listener()
    ear.wait(0)
    wait_for(lambda: redis_client.pubsub_numsub(channel)[0][1])
    ear.wait(0)  # on a busy machine the word that it has subscribed may come late: no ring
    yield ear
    ear.close()


def heard(listener: Listener, seconds: float = 5) -> bool:
    """Return whether a wait of some seconds was ended before its time."""
    began = time.monotonic()
    listener.wait(seconds)
    return time.monotonic() - began < seconds * 0.9


class TestAListener:
    def test_a_ring_ends_its_wait(self, listener: Listener) -> None:
        waiting = in_thread(lambda: heard(listener))
        ring()
        assert waiting.result(6)

    def test_a_ring_while_nobody_waited_is_not_lost(self, listener: Listener) -> None:
        ring()
        assert heard(listener)

    def test_rings_that_came_together_count_once(self, listener: Listener) -> None:
        for _ in range(5):
            ring()
        assert heard(listener)
        assert not heard(listener, 0.2)

    @pytest.mark.parametrize("said", [0.0, 12.5, None])
    def test_it_hears_how_long_a_run_could_not_be_seen(
        self, listener: Listener, said: float | None
    ) -> None:
        ring(said)
        assert listener.wait(5) == [said]

    @pytest.mark.parametrize("words", [b"nan", b"-1", b"inf", b"1e300", b"x", b"\xff"])
    def test_words_that_mean_nothing_are_a_ring_like_any(
        self, listener: Listener, redis_client: redis.Redis, words: bytes
    ) -> None:
        redis_client.publish(doorbell.CHANNEL, words)
        assert listener.wait(5) == [None]

    def test_without_a_ring_it_waits_its_time(self, listener: Listener) -> None:
        assert not heard(listener, 0.2)

    def test_nothing_to_wait_for_is_no_wait(self, listener: Listener) -> None:
        listener.wait(-3)

    def test_while_redis_is_away_it_is_a_clock_and_then_hears_again(
        self, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("django.conf.settings.REDIS_URL", own_redis.url)
        monkeypatch.setattr(doorbell, "_client", doorbell._client.__wrapped__)
        ear = Listener()
        ear.wait(0)
        own_redis.kill()
        assert not heard(ear, 0.3)
        ring()  # never raises
        own_redis.start()

        def rung_and_heard() -> bool:
            ring()
            return heard(ear, 0.5)

        wait_for(rung_and_heard)
        ear.close()
        ear.close()


@pytest.mark.django_db(transaction=True)
class TestRingingOnCommit:
    @pytest.fixture
    def rings(self, monkeypatch: pytest.MonkeyPatch, listener: Listener) -> "Rings":
        return Rings(listener)

    def test_a_transaction_rings_once_when_it_commits(self, rings: "Rings") -> None:
        with transaction.atomic():
            for _ in range(3):
                ring_on_commit()
            assert rings.count() == 0
        assert rings.count() == 1

    def test_a_rollback_rings_nothing(self, rings: "Rings") -> None:
        with transaction.atomic():
            ring_on_commit()
            transaction.set_rollback(True)
        assert rings.count() == 0

    def test_outside_a_transaction_it_rings_at_once(self, rings: "Rings") -> None:
        ring_on_commit()
        assert rings.count() == 1

    def test_a_savepoint_that_is_rolled_back_takes_only_its_own_ring(self, rings: "Rings") -> None:
        with transaction.atomic():
            with transaction.atomic():
                ring_on_commit()
                transaction.set_rollback(True)
            ring_on_commit()
        assert rings.count() == 1

    def test_an_outer_ring_is_enough_for_an_inner_savepoint_that_stays(
        self, rings: "Rings"
    ) -> None:
        with transaction.atomic():
            ring_on_commit()
            with transaction.atomic():
                ring_on_commit()
        assert rings.count() == 1


class Rings:
    """Counts the rings in the channel."""

    def __init__(self, listener: Listener) -> None:
        self._pubsub = listener._pubsub
        self.count()  # the answer to the subscription may still be under way

    def count(self) -> int:
        found = 0
        while self._pubsub.get_message(timeout=0.1) is not None:
            found += 1
        return found


@pytest.mark.django_db
class TestARingOnCommit:
    @pytest.fixture
    def said(self, monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
        found: list[float | None] = []
        monkeypatch.setattr(doorbell, "ring", lambda waited=0.0: found.append(waited))
        return found

    def test_it_says_the_longest_wait_of_a_transaction(
        self,
        said: list[float | None],
        django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
    ) -> None:
        with django_capture_on_commit_callbacks(execute=True):
            ring_on_commit()
            ring_on_commit(60)
            ring_on_commit(5)
        (waited,) = said
        assert waited is not None
        assert 60 <= waited < 70

    def test_what_nobody_knows_stays_so(
        self,
        said: list[float | None],
        django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
    ) -> None:
        with django_capture_on_commit_callbacks(execute=True):
            ring_on_commit(None)
            ring_on_commit(60)
        assert said == [None]
