"""An edit of a schedule's exchange or routing key repairs its call, as one of its queue does."""

from importlib import import_module

from django.db import migrations

CREATED: str = import_module("scheduling.migrations.0002_triggers").SCHEDULE_UPDATED
BEFORE = CREATED.split("CREATE TRIGGER")[0].replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")
AFTER = BEFORE.replace("o.queue,", "o.queue, o.exchange, o.routing_key,").replace(
    "n.queue,", "n.queue, n.exchange, n.routing_key,"
)


class Migration(migrations.Migration):
    dependencies = (("scheduling", "0002_triggers"),)
    operations = (migrations.RunSQL(AFTER, BEFORE),)
