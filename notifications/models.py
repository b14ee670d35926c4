"""Records that expire, their lead times, and the deliveries to their requesters.

Users write LifecycleId and Reminder (admin, importer, their own SQL). Delivery belongs to the
sweep, which makes its rows, and to `delivery`, which settles them.
"""

from typing import Any, ClassVar, Self

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator
from django.db import models
from django.db.models import Case, OuterRef, Q, Subquery, Value, When
from django.db.models.functions import Now

from scheduling.models import UNFINISHED, Run
from scheduling.models import State as RunState
from scheduling.outgoing.mail import check_address

LONGEST_LEAD_TIME = 3650


class Status(models.TextChoices):
    """Whether the requester of a record is reminded of its expiry."""

    ACTIVE = "active", "active"
    RETIRED = "retired", "retired"


class LifecycleId(models.Model):
    """A system's lifecycle id (LCID), which expires unless its requester has it extended."""

    lcid = models.CharField("LCID", max_length=100, unique=True)
    name = models.CharField(max_length=200)
    issued_on = models.DateField(null=True, blank=True)
    expires_on = models.DateField()
    requester_name = models.CharField(max_length=200, blank=True, default="", db_default="")
    requester_email = models.EmailField(
        "requester's e-mail", max_length=254, validators=[check_address]
    )
    status = models.CharField(
        max_length=7,
        choices=Status,
        default=Status.ACTIVE,
        db_default=Status.ACTIVE,
        help_text="Only active ones are reminded.",
    )

    class Meta:
        verbose_name = "lifecycle id"
        indexes = (
            # The rows that the sweep reads, in its order.
            models.Index(
                fields=["expires_on", "id"], name="lifecycle_expiring", condition=Q(status="active")
            ),
        )
        constraints = (
            models.CheckConstraint(name="lifecycle_status", condition=Q(status__in=Status.values)),
            # Deliveries refer to it by its LCID.
            models.CheckConstraint(name="lifecycle_has_lcid", condition=~Q(lcid="")),
        )

    def __str__(self) -> str:
        return self.lcid

    def clean(self) -> None:
        others = LifecycleId.objects.filter(lcid__iexact=self.lcid).exclude(lcid=self.lcid)
        if other := others.exclude(pk=self.pk).values_list("lcid", flat=True).first():
            raise ValidationError({"lcid": f"There is {other!r}, which differs in case only."})


class Reminder(models.Model):
    """A lead time: requesters receive one reminder when this many days, or fewer, are left."""

    days_before = models.PositiveSmallIntegerField(
        "days before the expiry", unique=True, validators=[MaxValueValidator(LONGEST_LEAD_TIME)]
    )
    enabled = models.BooleanField(default=True, db_default=True)

    class Meta:
        ordering = ("-days_before",)
        constraints = (
            models.CheckConstraint(
                name="reminder_lead_time", condition=Q(days_before__lte=LONGEST_LEAD_TIME)
            ),
        )

    def __str__(self) -> str:
        return f"{self.days_before} days before"


class DeliveryState(models.TextChoices):
    """The states of a delivery: its own columns come first, then the state of its run."""

    PENDING = "pending", "pending"
    SENT = "sent", "sent"
    SUPERSEDED = "superseded", "superseded"
    FAILED = "failed", "failed"
    CANCELLED = "cancelled", "cancelled"


UNSETTLED = Q(sent_at__isnull=True, superseded_at__isnull=True)


class DeliveryQuerySet(models.QuerySet["Delivery"]):
    def with_state(self) -> Self:
        """Annotate `state` (a DeliveryState), and `run_state` and `run_reason` of its run.

        Both are null where the run has been pruned; only final runs are, so that a delivery that
        was not settled by then has failed.
        """
        run = Run.objects.filter(pk=OuterRef("run_id"))
        return self.annotate(
            run_state=Subquery(run.values("state")[:1]),
            run_reason=Subquery(run.values("reason")[:1]),
        ).annotate(
            state=Case(
                When(sent_at__isnull=False, then=Value(DeliveryState.SENT)),
                When(superseded_at__isnull=False, then=Value(DeliveryState.SUPERSEDED)),
                When(run_state__in=UNFINISHED, then=Value(DeliveryState.PENDING)),
                When(run_state=RunState.CANCELLED, then=Value(DeliveryState.CANCELLED)),
                default=Value(DeliveryState.FAILED),
                output_field=models.CharField(),
            )
        )

    def in_state(self, state: str) -> Self:
        """Keep the deliveries in that DeliveryState; the unsettled ones have an index."""
        if state == DeliveryState.SENT:
            return self.filter(sent_at__isnull=False)
        if state == DeliveryState.SUPERSEDED:
            return self.filter(superseded_at__isnull=False)
        return self.with_state().filter(UNSETTLED, state=state)


class Delivery(models.Model):
    """One reminder of one expiry of one record: never made twice, so never told twice.

    A delivery that is not superseded has a run, which sends it. `sent_at` is written when the mail
    server has accepted it. `superseded_because` says why nothing is sent.
    """

    # By LCID, without a foreign key in Postgres: a sent delivery stays on record when the lifecycle
    # id is deleted, and still counts when it is imported again.
    record = models.ForeignKey(
        LifecycleId,
        to_field="lcid",
        db_column="lcid",
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        db_index=False,
        related_name="deliveries",
    )
    reminder = models.ForeignKey(Reminder, on_delete=models.PROTECT, related_name="deliveries")
    expires_on = models.DateField("of the expiry on")
    recipient = models.EmailField(max_length=254)
    run_id = models.UUIDField("run", null=True)
    created_at = models.DateTimeField(db_default=Now())
    sent_at = models.DateTimeField(null=True)
    superseded_at = models.DateTimeField(null=True)
    superseded_because = models.CharField(max_length=200, default="", db_default="")

    # `with_state()` adds these.
    state: str
    run_state: str | None
    run_reason: str | None

    objects: ClassVar[Any] = DeliveryQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "deliveries"
        indexes = (models.Index(fields=["id"], name="delivery_unsettled", condition=UNSETTLED),)
        constraints = (
            models.UniqueConstraint(
                fields=["record", "expires_on", "reminder"], name="delivery_once"
            ),
            models.CheckConstraint(
                name="delivery_sent_or_superseded",
                condition=Q(sent_at__isnull=True) | Q(superseded_at__isnull=True),
            ),
            models.CheckConstraint(
                name="delivery_has_run_or_superseded",
                condition=Q(run_id__isnull=False) | Q(superseded_at__isnull=False),
            ),
            models.CheckConstraint(
                name="delivery_superseded_with_reason",
                condition=Q(superseded_at__isnull=True, superseded_because="")
                | (Q(superseded_at__isnull=False) & ~Q(superseded_because="")),
            ),
        )

    def __str__(self) -> str:
        return f"delivery {self.pk} for {self.record_id}, expiring on {self.expires_on}"
