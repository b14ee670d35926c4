import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import redis
from celery import current_app
from django.db import connection
from django.db.models import F
from kombu import Queue
from pytest_django import Settings

from chaos.network import REFUSED, Proxy
from config.embedded import RedisServer
from scheduling import clock
from scheduling.beat import dispatch, lanes, lost_hints
from scheduling.beat.dispatch import publish
from scheduling.beat.lost_hints import LOST_AFTER, LOST_BY_AGE, resend
from scheduling.models import Priority, Run, State
from scheduling.runs import hints
from scheduling.runs.hints import Broker, Lane, list_key
from tests.jobs.tasks import add
from tests.scheduling.ledger import in_thread, run, second_connection

MEDIUM = Lane("celery", 6)


@pytest.fixture
def broker(redis_client: redis.Redis) -> Broker:
    return Broker()


def state_of(made: Run) -> str:
    return Run.objects.values_list("state", flat=True).get(pk=made.pk)


def hints_in(client: redis.Redis, lane: Lane = MEDIUM) -> list[UUID]:
    """Return the ids in a lane, the next to be served first."""
    payloads: list[Any] = client.lrange(list_key(lane), 0, -1)
    return [UUID(json.loads(payload)["headers"]["id"]) for payload in reversed(payloads)]


def age(seconds: float) -> None:
    """Let every queued run be queued some seconds ago."""
    Run.objects.filter(state=State.QUEUED).update(
        queued_at=clock.now() - timedelta(seconds=seconds)
    )


@pytest.mark.django_db
class TestPublish:
    def test_a_run_whose_time_has_come_is_queued_and_hinted(
        self, broker: Broker, redis_client: redis.Redis
    ) -> None:
        made = run()
        assert publish(broker).hints == 1
        made.refresh_from_db()
        assert made.state == State.QUEUED
        assert made.queued_at is not None
        assert hints_in(redis_client) == [made.pk]

    def test_one_whose_time_has_not_come_waits_in_the_ledger(
        self, broker: Broker, redis_client: redis.Redis
    ) -> None:
        later = run(run_at=clock.now() + timedelta(seconds=30))
        published = publish(broker)
        assert published.hints == 0
        assert published.next_in is not None
        assert 28 < published.next_in <= 30
        assert state_of(later) == State.SCHEDULED
        assert redis_client.dbsize() == 0

    def test_it_tells_the_room_of_the_lanes_it_has_emptied_and_of_others(
        self, broker: Broker, settings: Settings
    ) -> None:
        settings.QUEUE_WINDOW = 3
        for queue in ("emptied", "full", "full", "full", "full"):
            run(queue=queue)
        emptied, full, other = (Lane(queue, 6) for queue in ("emptied", "full", "other"))
        assert publish(broker, others=[other]).room == {emptied: 2, full: 0, other: 3}

    @pytest.mark.parametrize("state", [state for state in State if state != State.SCHEDULED])
    def test_no_other_state_is_published(self, broker: Broker, state: State) -> None:
        made = run(state)
        assert publish(broker).hints == 0
        assert state_of(made) == state

    def test_what_has_expired_is_not_published(self, broker: Broker) -> None:
        made = run(expires_at=clock.now())
        assert publish(broker).hints == 0
        assert state_of(made) == State.SCHEDULED

    def test_an_expired_one_does_not_stop_those_behind_it(self, broker: Broker) -> None:
        now = clock.now()
        run(expires_at=now, run_at=now - timedelta(hours=1))
        good = run()
        assert publish(broker).hints == 1
        assert state_of(good) == State.QUEUED

    def test_each_queue_and_priority_goes_to_its_own_list(
        self, broker: Broker, redis_client: redis.Redis
    ) -> None:
        made = {
            Lane(queue, step.value): run(queue=queue, priority=step)
            for queue in ("celery", "mails")
            for step in Priority
        }
        assert publish(broker).hints == 8
        assert {lane: hints_in(redis_client, lane) for lane in made} == {
            lane: [one.pk] for lane, one in made.items()
        }

    def test_the_oldest_go_first(self, broker: Broker, redis_client: redis.Redis) -> None:
        now = clock.now()
        made = [run(run_at=now - timedelta(minutes=minute)) for minute in (1, 3, 2)]
        publish(broker, limit=2)
        assert set(hints_in(redis_client)) == {made[1].pk, made[2].pk}

    def test_a_batch_lies_in_its_lane_by_run_at(
        self, broker: Broker, redis_client: redis.Redis
    ) -> None:
        now = clock.now()
        minutes = [(7 * n) % 40 for n in range(40)]
        made = {minute: run(run_at=now - timedelta(minutes=minute)) for minute in minutes}
        publish(broker)
        assert hints_in(redis_client) == [made[minute].pk for minute in sorted(made)[::-1]]

    def test_a_lane_gets_no_more_than_its_window_has_room_for(
        self, broker: Broker, redis_client: redis.Redis, settings: Settings
    ) -> None:
        settings.QUEUE_WINDOW = 3
        for _ in range(5):
            run()
        other = run(queue="other")
        assert publish(broker).hints == 4
        assert state_of(other) == State.QUEUED
        assert publish(broker).hints == 0
        redis_client.rpop(list_key(MEDIUM))
        assert publish(broker).hints == 1
        assert redis_client.llen(list_key(MEDIUM)) == 3

    def test_front_does_not_wait_for_the_window(self, broker: Broker, settings: Settings) -> None:
        settings.QUEUE_WINDOW = 1
        for _ in range(5):
            run(priority=Priority.FRONT)
        assert publish(broker).hints == 5

    def test_not_even_front_grows_without_end(
        self, broker: Broker, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings.QUEUE_WINDOW = 2
        monkeypatch.setattr(lanes, "FRONT_AT_LEAST", 3)
        for _ in range(6):
            run(priority=Priority.FRONT)
        assert [publish(broker).hints for _ in range(2)] == [4, 0]

    def test_a_run_whose_queue_has_a_name_of_the_brokers_own_waits_and_says_so(
        self, broker: Broker, redis_client: redis.Redis
    ) -> None:
        """Raw SQL can write anything."""
        made = [run(queue=name, priority=0) for name in ("unacked", "_kombu.binding.celery")]
        queued = run(State.QUEUED, queue="unacked", priority=0)
        good = run(queue="good")
        age(LOST_BY_AGE.total_seconds() + 10)
        assert (publish(broker).hints, resend(broker), publish(broker).hints) == (1, 0, 0)
        assert redis_client.keys() == [b"good\x06\x166"]
        for each in made:
            each.refresh_from_db()
            assert each.state == State.SCHEDULED
            assert "the broker uses this name itself" in each.reason
        assert (state_of(queued), state_of(good)) == (State.QUEUED, State.QUEUED)

    def test_while_redis_is_away_nothing_is_queued(self, settings: Settings) -> None:
        settings.REDIS_URL = "redis://127.0.0.1:1/0"
        made = run()
        with pytest.raises(redis.ConnectionError):
            publish(Broker())
        assert state_of(made) == State.SCHEDULED


REFUSALS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "READONLY": (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
    "OOM": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
    "NOREPLICAS": (
        ("CONFIG", "SET", "min-replicas-to-write", "1"),
        ("CONFIG", "SET", "min-replicas-to-write", "0"),
    ),
}


@pytest.mark.django_db
class TestARedisThatRefuses:
    @pytest.fixture
    def own(self, own_redis: RedisServer, settings: Settings) -> Iterator[Any]:
        settings.REDIS_URL = own_redis.url
        settings.QUEUE_WINDOW = 3
        with redis.Redis.from_url(own_redis.url) as client:
            yield client

    def test_while_it_takes_no_writes_nothing_is_queued(self, own: Any) -> None:
        for _ in range(10):
            run()
        for name, (begin, end) in REFUSALS.items():
            own.execute_command(*begin)
            for _ in range(3):
                with pytest.raises(redis.ResponseError):
                    publish(Broker())
            assert not Run.objects.filter(state=State.QUEUED).exists(), name
            own.execute_command(*end)
        publish(Broker())
        assert Run.objects.filter(state=State.QUEUED).count() == own.llen(list_key(MEDIUM)) == 3

    def test_hints_whose_push_failed_are_pushed_before_more_is_queued(
        self, own: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It gets full between the look at the lanes and the push."""
        broker, lengths = Broker(), Broker.lengths
        made = [run() for _ in range(10)]

        def full_afterwards(self: Broker, lanes: Any) -> Any:
            found = lengths(self, lanes)
            own.config_set("maxmemory", "1")
            return found

        with monkeypatch.context() as patch:
            patch.setattr(Broker, "lengths", full_afterwards)
            with pytest.raises(redis.ResponseError):
                publish(broker)
        for _ in range(3):
            with pytest.raises(redis.ResponseError):
                publish(broker)
        assert Run.objects.filter(state=State.QUEUED).count() == 3
        own.config_set("maxmemory", "0")
        assert publish(broker).hints == 0
        assert hints_in(own) == [each.pk for each in made[:3]]
        assert not broker.unsure

    @pytest.mark.parametrize("manner", ["lose the answer", "cut before"])
    def test_a_push_that_was_cut_off_is_made_up_for_once(
        self, own: Any, settings: Settings, manner: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Proxy.before(settings.REDIS_URL) as proxy:
            settings.REDIS_URL = proxy.url
            broker = Broker()
            for _ in range(10):
                run()
            if manner == "lose the answer":
                proxy.lose_the_answer_to(b"LPUSH")
            else:
                found = broker.lengths([MEDIUM])

                def cut_off(_: Any) -> dict[Lane, int]:
                    proxy.cut_off(REFUSED)
                    return found

                monkeypatch.setattr(broker, "lengths", cut_off)
            with pytest.raises(redis.ConnectionError):
                publish(broker)
            monkeypatch.undo()
            proxy.mend()
            publish(broker)
            assert len(set(hints_in(own))) == own.llen(list_key(MEDIUM)) == 3
            assert Run.objects.filter(state=State.QUEUED).count() == 3


@pytest.mark.django_db
class TestResend:
    def test_a_hint_that_redis_lost_is_sent_again(
        self, broker: Broker, redis_client: redis.Redis
    ) -> None:
        made = run()
        publish(broker)
        redis_client.flushdb()
        age(4)
        assert resend(broker) == 1
        assert hints_in(redis_client) == [made.pk]
        assert (state_of(made), resend(broker)) == (State.QUEUED, 0)

    def test_what_was_queued_just_now_is_left_alone(
        self, broker: Broker, redis_client: redis.Redis
    ) -> None:
        run()
        publish(broker)
        redis_client.flushdb()
        age(LOST_AFTER.total_seconds() - 1)
        assert resend(broker) == 0

    def test_a_hint_that_lies_in_its_list_is_not_sent_again_however_old(
        self, broker: Broker, redis_client: redis.Redis
    ) -> None:
        for _ in range(20):
            run()
        publish(broker)
        age(3600)
        assert resend(broker) == 0
        assert redis_client.llen(list_key(MEDIUM)) == 20

    def test_only_the_lost_ones_of_a_list_are_sent_again(
        self, broker: Broker, redis_client: redis.Redis
    ) -> None:
        for _ in range(5):
            run()
        publish(broker)
        lost = hints_in(redis_client)[0]
        redis_client.rpop(list_key(MEDIUM))
        age(4)
        assert resend(broker) == 1
        assert hints_in(redis_client)[-1] == lost

    def test_one_that_a_worker_has_taken_is_sent_again_once(
        self, broker: Broker, redis_client: redis.Redis
    ) -> None:
        made = run(queue="probe")
        publish(broker)
        with current_app.connection_for_read() as broker_connection:
            queue = Queue("probe", channel=broker_connection.default_channel)
            queue.declare()
            got: Any = queue.get(no_ack=False)
            assert got is not None
            for sent in (1, 0, 0):
                age(30)
                assert resend(broker) == sent
            assert hints_in(redis_client, Lane("probe", 6)) == [made.pk]
            got.ack()

    def test_a_list_full_of_plain_messages_is_looked_through_for_what_is_very_old_alone(
        self, broker: Broker, redis_client: redis.Redis, settings: Settings
    ) -> None:
        settings.QUEUE_WINDOW, settings.UNTRACKED_TASKS = 2, [add.name]
        made = run(State.QUEUED)
        for _ in range(5):
            add.apply_async((1, 2))
        age(LOST_BY_AGE.total_seconds() - 10)
        assert resend(broker) == 0
        age(LOST_BY_AGE.total_seconds() + 10)
        assert resend(broker) == 1
        assert hints_in(redis_client)[-1] == made.pk

    def test_a_very_long_list_is_looked_through_by_and_by_and_fills_no_further(
        self, broker: Broker, redis_client: redis.Redis, settings: Settings,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(hints, "PIECE", 2)
        monkeypatch.setattr(lost_hints, "PIECE", 2)
        monkeypatch.setattr(lost_hints, "SEARCH_PIECES", 3)
        settings.QUEUE_WINDOW, settings.UNTRACKED_TASKS = 4, [add.name]
        for _ in range(4):
            run()
        publish(broker)
        for _ in range(20):
            add.apply_async((1, 2))
        lost = hints_in(redis_client)[0]
        redis_client.rpop(list_key(MEDIUM))
        sent = []
        for _ in range(30):  # a week of looks, each ten minutes after the last
            age(LOST_BY_AGE.total_seconds() + 10)
            sent.append(resend(broker))
        assert sum(sent) == 1
        assert sent.index(1) > 1
        assert hints_in(redis_client)[-1] == lost
        assert redis_client.llen(list_key(MEDIUM)) == 24

    def test_a_lane_that_is_no_list_stops_no_other(
        self, broker: Broker, redis_client: redis.Redis
    ) -> None:
        redis_client.sadd("odd", "x")
        run(State.QUEUED, queue="odd", priority=0)
        made = run(State.QUEUED)
        age(LOST_BY_AGE.total_seconds() + 10)
        assert resend(broker) == 1
        assert hints_in(redis_client) == [made.pk]

    def test_a_front_lane_that_is_full_is_still_looked_through(
        self, broker: Broker, redis_client: redis.Redis, settings: Settings
    ) -> None:
        settings.QUEUE_WINDOW = 2
        front = Lane("celery", Priority.FRONT)
        for _ in range(lanes.FRONT_AT_LEAST):
            run(priority=Priority.FRONT)
        publish(broker)
        lost = hints_in(redis_client, front)[0]
        redis_client.rpop(list_key(front))
        age(4)
        assert resend(broker) == 1
        assert hints_in(redis_client, front)[-1] == lost

    def test_the_attempt_of_a_hint_that_is_sent_again_is_the_runs(
        self, broker: Broker, redis_client: redis.Redis
    ) -> None:
        run(State.QUEUED, attempt=4)
        age(4)
        resend(broker)
        (payload,) = redis_client.lrange(list_key(MEDIUM), 0, -1)
        assert json.loads(payload)["headers"]["run_attempt"] == 4

    def test_many_are_sent_again_in_batches(
        self, broker: Broker, redis_client: redis.Redis
    ) -> None:
        for _ in range(7):
            run(State.QUEUED)
        age(4)
        assert resend(broker, limit=3) == 7
        assert redis_client.llen(list_key(MEDIUM)) == 7


@pytest.mark.django_db(transaction=True)
class TestManyBeats:
    def test_two_beats_publish_each_run_once(
        self, broker: Broker, redis_client: redis.Redis
    ) -> None:
        Run.objects.bulk_create(
            [
                Run(
                    task="t", queue="celery", origin="adhoc", due_at=clock.now(), run_at=clock.now()
                )
                for _ in range(1000)
            ]
        )

        def publish_all() -> int:
            mine = Broker()
            return sum(iter(lambda: publish(mine, limit=50).hints, 0))

        beats = [in_thread(publish_all) for _ in range(2)]
        assert sum(beat.result(30) for beat in beats) == 1000
        assert len(set(hints_in(redis_client))) == 1000
        assert not Run.objects.exclude(state=State.QUEUED).exists()

    def test_a_run_that_somebody_cancels_is_skipped_and_not_waited_for(
        self, broker: Broker
    ) -> None:
        cancelled, free = run(), run()
        with second_connection() as other:
            other.execute("SELECT 1 FROM scheduling_run WHERE id = %s FOR UPDATE", [cancelled.pk])
            assert in_thread(lambda: publish(broker)).result(5).hints == 1
        assert (state_of(cancelled), state_of(free)) == (State.SCHEDULED, State.QUEUED)

    def test_a_crash_between_queueing_and_pushing_costs_seconds(
        self, broker: Broker, redis_client: redis.Redis
    ) -> None:
        made = run()
        dispatch._queue(MEDIUM, 10)
        assert redis_client.dbsize() == 0
        age(4)
        assert resend(broker) == 1
        assert hints_in(redis_client) == [made.pk]


@pytest.mark.django_db
@pytest.mark.usefixtures("bare_runs")
def test_looking_for_lanes_reads_one_index_entry_of_each() -> None:
    Run.objects.bulk_create(
        [
            Run(task="t", queue=f"q{n % 3}", origin="adhoc", due_at=clock.now(), run_at=clock.now())
            for n in range(3000)
        ]
    )
    Run.objects.filter(queue="q1").update(run_at=F("run_at") + timedelta(hours=1))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE scheduling_run")
        cursor.execute(f"EXPLAIN {lanes.WAITING_LANES}")
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "Seq Scan" not in plan
    assert plan.count("run_scheduled") == 2
    waiting = lanes.Lanes().look()
    assert {lane.queue for lane in waiting.due} == {"q0", "q2"}
    assert 3500 < (waiting.next_in or 0) <= 3600
