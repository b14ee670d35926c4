"""A herd: more schedules due at once than one batch takes.

Several threads, each on a connection of its own, fire it beside each other: while Postgres writes
one batch, Python decides on the next. They skip each other's locks, as beats do.
"""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import chain

from django.db import connection

from scheduling.dispatch import push
from scheduling.firing import BATCH, Fired, fire_due
from scheduling.hints import Broker, Lane

HANDS = 3  # more share Python's one interpreter lock, and gain nothing
# For each connection of beat. Whatever row a user's transaction holds, it goes on with the others.
# And what it looks for has an index, however small a table was when the statement was planned.
SESSION = "SET lock_timeout = '2s'; SET enable_seqscan = off"
BATCHES = 16  # of each hand in one turn, after which beat's other steps get theirs


def fire_batch(broker: Broker, low: datetime, room: dict[Lane, int]) -> list[Fired]:
    """Fire one batch, and push the hints of what it has queued; see `firing.fire_due`."""
    fired = fire_due(low, room=room)
    push(broker, fired.hints)
    return [fired]


def fire_herd(broker: Broker, low: datetime, room: dict[Lane, int]) -> list[Fired]:
    """Fire a turn of batches with all hands; return them."""
    share = {lane: left // HANDS for lane, left in room.items()}
    with ThreadPoolExecutor(HANDS, thread_name_prefix="herd") as hands:
        turns = [hands.submit(_turn, broker, low, dict(share)) for _ in range(HANDS)]
    return list(chain.from_iterable(turn.result() for turn in turns))


def _turn(broker: Broker, low: datetime, room: dict[Lane, int]) -> list[Fired]:
    done: list[Fired] = []
    try:
        with connection.cursor() as cursor:
            cursor.execute(SESSION)
        while len(done) < BATCHES and (not done or done[-1].plans == BATCH):
            done += fire_batch(broker, low, room)
        return done
    finally:
        connection.close()
