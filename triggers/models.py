"""Triggers, their secrets and templates, and the attempts to send them."""

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now

from scheduling.ids import uuid7
from scheduling.outgoing import addresses, sealing
from triggers import definitions
from triggers.definitions import Definition, Kind, Method

SIGNING = "signing"  # the name of the secrets that sign; all others are placeholders


class TriggerTemplate(models.Model):
    """A definition with fields, from which triggers are made by filling the fields in."""

    name = models.CharField(max_length=200, unique=True)
    kind = models.CharField(max_length=7, choices=Kind, default=Kind.HTTP)
    fields = models.JSONField(
        default=dict, blank=True,
        help_text='Each field with its type and, if it has one, its default: {"city": {"type": '
        '"text", "default": "Bonn"}}. Types: text, number, boolean, json.',
    )  # fmt: skip
    definition = models.JSONField(
        help_text="method, url, headers and body, or url, exchange, routing_key, body and"
        " properties; ${fields.NAME} stands for a field."
    )

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        definitions.check_template(self.kind, self.fields, self.definition)


class Trigger(models.Model):
    """A call of another system. A run of `triggers.tasks.fire` sends it.

    `next_at` and `turn_at` belong to `triggers.pace`, `failing_since` and `warned_at` to
    `triggers.streaks`.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    name = models.CharField(max_length=200, unique=True)
    description = models.TextField(blank=True, default="", db_default="")
    owner = models.TextField(
        blank=True, default="", db_default="", validators=[addresses.validate],
        help_text="Mail addresses and https URLs that are notified; empty: those of ALERTS_TO.",
    )  # fmt: skip
    enabled = models.BooleanField(default=True, db_default=True)
    disabled_reason = models.TextField(default="", db_default="", editable=False)
    per_minute = models.PositiveIntegerField(
        null=True, blank=True, help_text="At most so many requests a minute; empty: no limit."
    )
    template = models.ForeignKey(
        TriggerTemplate, null=True, blank=True, on_delete=models.PROTECT, related_name="triggers",
        help_text="If a template is chosen, its definition counts, with the fields given here.",
    )  # fmt: skip
    fields = models.JSONField(default=dict, blank=True, help_text='{"city": "Bonn"}')
    kind = models.CharField(max_length=7, choices=Kind, default=Kind.HTTP, db_default=Kind.HTTP)
    method = models.CharField(
        max_length=6, choices=Method, default=Method.POST, db_default=Method.POST
    )
    url = models.TextField(blank=True, default="", db_default="", verbose_name="URL")
    headers = models.JSONField(default=dict, blank=True)
    body = models.JSONField(null=True, blank=True)
    exchange = models.CharField(max_length=255, blank=True, default="", db_default="")
    routing_key = models.CharField(
        max_length=255, blank=True, default="", db_default="",
        help_text="Without an exchange: the queue.",
    )  # fmt: skip
    properties = models.JSONField(default=dict, blank=True)
    next_at = models.DateTimeField(null=True, editable=False)
    turn_at = models.DateTimeField(null=True, editable=False)
    failing_since = models.DateTimeField(null=True, editable=False)
    warned_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        constraints = (
            models.CheckConstraint(
                name="trigger_per_minute",
                condition=Q(per_minute__isnull=True) | Q(per_minute__gt=0),
            ),
            models.CheckConstraint(
                name="trigger_warned_while_failing",
                condition=Q(warned_at__isnull=True) | Q(failing_since__isnull=False),
            ),
        )

    def __str__(self) -> str:
        return self.name

    def definition(self) -> Definition:
        """Return the trigger's own definition, or its template's with its fields.

        Raises:
            ValidationError: the fields do not fit the template.
        """
        if self.template is not None:
            template = self.template
            return definitions.filled(
                template.kind, template.fields, template.definition, self.fields
            )
        return Definition(
            kind=Kind(self.kind), method=Method(self.method), url=self.url, headers=self.headers,
            body=self.body, exchange=self.exchange, routing_key=self.routing_key,
            properties=self.properties,
        )  # fmt: skip

    def clean(self) -> None:
        definitions.check(self.definition())


class Secret(models.Model):
    """A secret of a trigger, encrypted: it signs, or a placeholder `${secrets.NAME}` names it."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    trigger = models.ForeignKey(Trigger, on_delete=models.CASCADE, related_name="secrets")
    name = models.CharField(
        max_length=100,
        help_text="`signing` signs each request; any other name is for ${secrets.NAME}.",
    )
    sealed = models.TextField(editable=False)
    ends_at = models.DateTimeField(
        null=True, blank=True, help_text="From then on, the secret is not used; empty: for ever."
    )

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=["trigger", "name"], name="secret_name_once", condition=~Q(name=SIGNING)
            ),
        )

    def __str__(self) -> str:
        return f"{self.trigger}: {self.name}"

    @property
    def place(self) -> str:
        """The row that the encrypted text is bound to."""
        return f"secret {self.id} of trigger {self.trigger_id}"

    def seal(self, value: str) -> None:
        """Encrypt and keep `value`.

        Raises:
            SealingError: SECRETS_KEYS is empty.
        """
        self.sealed = sealing.seal(value, self.place)

    def unseal(self) -> str:
        return sealing.unseal(self.sealed, self.place)


class Attempt(models.Model):
    """One attempt to send a trigger, with its answer."""

    trigger = models.ForeignKey(Trigger, on_delete=models.CASCADE, related_name="attempts")
    # No foreign key: runs are pruned on their own. Null: a test.
    run_id = models.UUIDField(null=True)
    number = models.PositiveIntegerField(default=1)
    at = models.DateTimeField(db_default=Now())
    status = models.PositiveSmallIntegerField(null=True)
    milliseconds = models.PositiveIntegerField(null=True)
    address = models.CharField(max_length=100, default="", db_default="")
    answer = models.BinaryField(default=b"")  # its first 4 KiB
    error = models.TextField(default="", db_default="")

    class Meta:
        indexes = (
            models.Index(F("trigger"), F("id").desc(), name="attempt_newest"),
            models.Index(fields=["run_id"], name="attempt_of_run"),
            models.Index(fields=["at"], name="attempt_at"),
        )

    def __str__(self) -> str:
        return f"{self.trigger}, attempt {self.number}"

    @property
    def is_test(self) -> bool:
        return self.run_id is None

    def answer_text(self) -> str:
        """Return the answer as text; a binary one as its length and its first bytes."""
        content = bytes(self.answer)
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            # A character may be cut at the end.
            if error.start < len(content) - 3:
                return f"{len(content):,} bytes, not text: {content[:32].hex(' ')}"
            text = content[: error.start].decode()
        if "\0" in text:
            return f"{len(content):,} bytes, not text: {content[:32].hex(' ')}"
        return text
