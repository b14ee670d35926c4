"""The rate limit of a trigger, over all workers: GCRA in one UPDATE."""

from uuid import UUID

from django.db import connection

# A request whose turn comes within a second waits for it. A later one learns when to come back:
# `turn_at` spreads the returns, so that they do not all come at once. Only `next_at` decides.
TAKE = """
UPDATE triggers_trigger AS trigger
   SET next_at = CASE WHEN fits THEN at + period ELSE next_at END,
       turn_at = CASE WHEN fits THEN turn_at ELSE GREATEST(turn_at, at) + period END
  FROM (SELECT id, GREATEST(next_at, clock_timestamp()) AS at,
               COALESCE(next_at, '-infinity') <= clock_timestamp() + interval '1 second' AS fits,
               interval '1 minute' / per_minute AS period
          FROM triggers_trigger WHERE id = %s AND per_minute IS NOT NULL FOR UPDATE) AS asked
 WHERE trigger.id = asked.id
RETURNING fits, extract(epoch FROM
    CASE WHEN fits THEN at ELSE trigger.turn_at - period END - clock_timestamp())::float
"""


def take_turn(trigger_id: UUID) -> tuple[bool, float]:
    """Take a trigger's next turn.

    Returns:
        Whether the caller may send, and the seconds to wait before that; otherwise the seconds
        after which it may ask again.
    """
    with connection.cursor() as cursor:
        cursor.execute(TAKE, [trigger_id])
        row = cursor.fetchone()
    return (True, 0.0) if row is None else (row[0], max(row[1], 0.0))
