"""The lead time that every installation starts with; more can be added in the admin."""

from typing import Any

from django.db import migrations


def add_reminder(apps: Any, schema_editor: Any) -> None:
    apps.get_model("notifications", "Reminder").objects.get_or_create(days_before=60)


class Migration(migrations.Migration):
    dependencies = (("notifications", "0001_initial"),)

    operations = (migrations.RunPython(add_reminder, migrations.RunPython.noop),)
