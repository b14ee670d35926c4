"""The admin: triggers with a preview and a test, their secrets, templates and attempts."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import Count, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html, format_html_join

from scheduling.jobs import PermanentError
from scheduling.outgoing import sealing
from scheduling.outgoing.sealing import SealingError
from triggers import delivery, streaks
from triggers.models import Attempt, Secret, Trigger, TriggerTemplate
from triggers.placeholders import PlaceholderError

SHOWN = 20  # attempts on the page of a trigger
PROBLEMS = (PermanentError, PlaceholderError, ValidationError)


class SecretForm(forms.ModelForm[Secret]):
    """A secret is typed, and never shown again."""

    value = forms.CharField(
        required=False, strip=False, widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
        help_text="Never shown again. Leave it empty to keep the stored value.",
    )  # fmt: skip

    class Meta:
        model = Secret
        fields = ("name", "ends_at")

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        value = cleaned.get("value")
        if value:
            try:
                sealing.seal(value, "")  # to refuse it before the trigger is saved
            except SealingError as error:
                self.add_error("value", str(error))
        elif self.instance._state.adding:
            self.add_error("value", "Give the secret.")
        return cleaned


class SecretInline(admin.TabularInline[Secret, Trigger]):
    model = Secret
    form = SecretForm
    fields = ("name", "value", "ends_at")
    extra = 0


@admin.register(Trigger)
class TriggerAdmin(admin.ModelAdmin[Trigger]):
    list_display = ("name", "kind", "template", "enabled", "failing_since", "description")
    list_filter = ("enabled", "kind", "template")
    list_select_related = ("template",)
    search_fields = ("name", "description")
    ordering = ("name",)
    inlines = (SecretInline,)
    actions = ("send_test", "enable", "disable")
    readonly_fields = ("enabled", "disabled_reason", "failing_since", "preview", "newest_attempts")
    fieldsets = (
        (None, {"fields": ("name", "description", "owner", "per_minute")}),
        ("From a template", {"fields": ("template", "fields")}),
        (
            "Or its own definition",
            {
                "fields": ("kind", "url", "method", "headers", "body"),
                "description": "Placeholders: ${run_id}, ${schedule}, ${due_at}, ${due_local},"
                " ${run_at}, ${attempt}, ${now}, ${args.NAME}, ${secrets.NAME}.",
            },
        ),
        ("Of a message", {"fields": ("exchange", "routing_key", "properties")}),
        ("State", {"fields": ("enabled", "disabled_reason", "failing_since")}),
        ("Request and attempts", {"fields": ("preview", "newest_attempts")}),
    )

    @admin.display(description="preview")
    def preview(self, trigger: Trigger) -> str:
        if trigger._state.adding:
            return "-"
        try:
            return format_html("<pre>{}</pre>", "\n".join(_preview(trigger)))
        except PROBLEMS as error:
            return _text_of(error)

    @admin.display(description="newest attempts")
    def newest_attempts(self, trigger: Trigger) -> str:
        attempts = trigger.attempts.order_by("-id")[:SHOWN]
        lines = format_html_join("", "<li>{} <pre>{}</pre></li>", (
            (_line(attempt), attempt.answer_text()) for attempt in attempts
        ))  # fmt: skip
        return format_html("<ul>{}</ul>", lines) if lines else "-"

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        for each in formset.forms:
            if value := each.cleaned_data.get("value"):
                each.instance.trigger = formset.instance
                each.instance.seal(value)
        formset.save()

    @admin.action(description="Send a test now", permissions=["change"])
    def send_test(self, request: HttpRequest, triggers: QuerySet[Trigger]) -> None:
        for trigger in triggers.select_related("template")[:5]:
            try:
                attempt = delivery.send_test(trigger, {}).attempt
            except PROBLEMS as error:
                self.message_user(request, f"{trigger}: {_text_of(error)}", messages.ERROR)
                continue
            level = messages.ERROR if attempt.error else messages.SUCCESS
            self.message_user(request, f"{trigger}: {_line(attempt)}", level)

    @admin.action(description="Enable", permissions=["change"])
    def enable(self, request: HttpRequest, triggers: QuerySet[Trigger]) -> None:
        enabled = sum(streaks.enable(trigger.pk) for trigger in triggers)
        self.message_user(request, f"Enabled {enabled}.", messages.SUCCESS)

    @admin.action(description="Disable", permissions=["change"])
    def disable(self, request: HttpRequest, triggers: QuerySet[Trigger]) -> None:
        reason = f"Disabled by {request.user}."
        disabled = sum(streaks.disable(trigger.pk, reason) for trigger in triggers)
        self.message_user(request, f"Disabled {disabled}.", messages.SUCCESS)


@admin.register(TriggerTemplate)
class TriggerTemplateAdmin(admin.ModelAdmin[TriggerTemplate]):
    list_display = ("name", "kind", "followers")
    readonly_fields = ("followers",)
    ordering = ("name",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[TriggerTemplate]:
        return super().get_queryset(request).annotate(follow=Count("triggers"))

    @admin.display(description="triggers that follow it", ordering="follow")
    def followers(self, template: Any) -> str:
        return str(getattr(template, "follow", 0))


@admin.register(Attempt)
class AttemptAdmin(admin.ModelAdmin[Attempt]):
    list_display = ("id", "trigger", "at", "number", "status", "milliseconds", "error", "run")
    list_filter = ("trigger", "status")
    list_select_related = ("trigger",)
    search_fields = ("=run_id",)
    ordering = ("-id",)
    show_full_result_count = False
    fields = (
        "trigger", "at", "number", "status", "milliseconds", "address", "error", "answered", "run",
    )  # fmt: skip

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    @admin.display(description="answer")
    def answered(self, attempt: Attempt) -> str:
        return format_html("<pre>{}</pre>", attempt.answer_text())

    @admin.display(description="run")
    def run(self, attempt: Attempt) -> str:
        if attempt.is_test:
            return "a test"
        url = reverse("admin:scheduling_run_change", args=[attempt.run_id])
        return format_html('<a href="{}">{}</a>', url, attempt.run_id)


def _preview(trigger: Trigger) -> list[str]:
    return delivery.shown(delivery.preview(trigger, {}))


def _line(attempt: Attempt) -> str:
    outcome = attempt.error or f"answered {attempt.status}" if attempt.status else attempt.error
    kind = "test" if attempt.is_test else f"attempt {attempt.number}"
    return f"{attempt.at:%Y-%m-%d %H:%M:%S} UTC, {kind}: {outcome or 'sent'}"


def _text_of(error: Exception) -> str:
    return "; ".join(error.messages) if isinstance(error, ValidationError) else str(error)
