"""The templates that every installation starts with; more can be added in the admin."""

from typing import Any

from django.db import migrations

TEMPLATES = (
    (
        "webhook",
        {"url": {"type": "text"}, "data": {"type": "json", "default": {}}},
        {
            "method": "POST",
            "url": "${fields.url}",
            "body": {
                "type": "schedule.due",
                "timestamp": "${now}",
                "data": {
                    "run_id": "${run_id}",
                    "schedule": "${schedule}",
                    "due_at": "${due_at}",
                    "data": "${fields.data}",
                },
            },
        },
    ),
    (
        "function URL",
        {"url": {"type": "text"}, "payload": {"type": "json", "default": {}}},
        {
            "method": "POST",
            "url": "${fields.url}",
            "headers": {"X-Amz-Invocation-Type": "Event"},
            "body": {
                "id": "${run_id}",
                "time": "${due_at}",
                "source": "truebeat",
                "detail-type": "Scheduled Event",
                "detail": "${fields.payload}",
            },
        },
    ),
    (
        "Slack message",
        {
            "host": {"type": "text", "default": "hooks.slack.com"},
            "text": {"type": "text", "default": "${schedule}: due at ${due_local}"},
        },
        {
            "method": "POST",
            "url": "https://${fields.host}/services/${secrets.path}",
            "body": {"text": "${fields.text}"},
        },
    ),
)


def add_templates(apps: Any, schema_editor: Any) -> None:
    templates = apps.get_model("triggers", "TriggerTemplate").objects
    for name, fields, definition in TEMPLATES:
        values = {"kind": "http", "fields": fields, "definition": definition}
        templates.get_or_create(name=name, defaults=values)


class Migration(migrations.Migration):
    dependencies = (("triggers", "0001_initial"),)

    operations = (migrations.RunPython(add_templates, migrations.RunPython.noop),)
