"""The SQL that Django's models cannot say: what notices edits, cascades, and how tables are kept.

Every trigger is plain SQL at statement level, so that `bulk_create`, `queryset.update()` and raw
SQL count like a form's save. A trigger only ever says "this schedule needs a new plan, counted from
now"; it never touches `next_due_at`, so an occurrence that is already due is never erased. Columns
are compared inside the functions: a WHEN clause that names them would block later ALTER TYPE.
"""

from collections.abc import Sequence

from django.db import migrations

# Locks plans in id order, so that two edits of many schedules cannot deadlock.
ASK_FOR_PLANS = """
CREATE FUNCTION scheduling_ask_for_plans(schedule_ids integer[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM scheduling_plan
      WHERE schedule_id = ANY(schedule_ids) ORDER BY schedule_id FOR NO KEY UPDATE;
    UPDATE scheduling_plan SET needs_plan = true, plan_from = clock_timestamp(),
        replaced_at = CASE WHEN needs_plan THEN replaced_at ELSE clock_timestamp() END
      WHERE schedule_id = ANY(schedule_ids);
END $$;
"""

# An edit of a rule looks for the schedules that use it. One that is being attached to it just then
# must wait for that edit to commit, or the edit for it: else its plan could keep the old rule. Rules
# and calendars are locked before plans, here as by their own edits: so these cannot deadlock.
HOLD_RULES = """
CREATE FUNCTION scheduling_hold_rules(
    crontabs integer[], intervals integer[], clockeds integer[], solars integer[]
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM django_celery_beat_crontabschedule WHERE id = ANY(crontabs)
      ORDER BY id FOR SHARE;
    PERFORM 1 FROM django_celery_beat_intervalschedule WHERE id = ANY(intervals)
      ORDER BY id FOR SHARE;
    PERFORM 1 FROM django_celery_beat_clockedschedule WHERE id = ANY(clockeds)
      ORDER BY id FOR SHARE;
    PERFORM 1 FROM django_celery_beat_solarschedule WHERE id = ANY(solars)
      ORDER BY id FOR SHARE;
END $$;
"""

SCHEDULE_INSERTED = """
CREATE FUNCTION scheduling_schedule_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO scheduling_plan (schedule_id, needs_plan, plan_from)
      SELECT id, true, clock_timestamp() FROM inserted ON CONFLICT DO NOTHING;
    PERFORM scheduling_hold_rules(array_agg(DISTINCT crontab_id), array_agg(DISTINCT interval_id),
                                  array_agg(DISTINCT clocked_id), array_agg(DISTINCT solar_id))
      FROM inserted;
    RETURN NULL;
END $$;

CREATE TRIGGER scheduling_schedule_inserted
  AFTER INSERT ON django_celery_beat_periodictask
  REFERENCING NEW TABLE AS inserted
  FOR EACH STATEMENT EXECUTE FUNCTION scheduling_schedule_inserted();
"""

# An edit of the call is the repair of a schedule that is in quarantine; whether it is, shows once
# the lock is held, since beat may be putting it there at this moment.
SCHEDULE_UPDATED = """
CREATE FUNCTION scheduling_schedule_updated() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed integer[];
    repaired integer[];
BEGIN
    SELECT array_agg(n.id) INTO changed
      FROM after_update n JOIN before_update o ON o.id = n.id
     WHERE (o.enabled, o.one_off, o.start_time, o.expires,
            o.crontab_id, o.interval_id, o.clocked_id, o.solar_id)
           IS DISTINCT FROM
           (n.enabled, n.one_off, n.start_time, n.expires,
            n.crontab_id, n.interval_id, n.clocked_id, n.solar_id);
    IF changed IS NOT NULL THEN
        PERFORM scheduling_hold_rules(
            array_agg(DISTINCT crontab_id), array_agg(DISTINCT interval_id),
            array_agg(DISTINCT clocked_id), array_agg(DISTINCT solar_id)
        ) FROM after_update WHERE id = ANY(changed);
    END IF;
    SELECT array_agg(n.id) INTO repaired
      FROM after_update n JOIN before_update o ON o.id = n.id
     WHERE (o.task, o.args, o.kwargs, o.queue, o.headers, o.priority, o.expire_seconds)
           IS DISTINCT FROM
           (n.task, n.args, n.kwargs, n.queue, n.headers, n.priority, n.expire_seconds);
    IF repaired IS NOT NULL THEN
        PERFORM 1 FROM scheduling_plan
          WHERE schedule_id = ANY(repaired) ORDER BY schedule_id FOR NO KEY UPDATE;
        SELECT array_agg(schedule_id) INTO repaired
          FROM scheduling_plan WHERE schedule_id = ANY(repaired) AND error <> '';
    END IF;
    IF changed IS NOT NULL OR repaired IS NOT NULL THEN
        PERFORM scheduling_ask_for_plans(changed || repaired);
    END IF;
    IF changed IS NOT NULL THEN
        UPDATE scheduling_plan SET done = false WHERE done AND schedule_id = ANY(changed);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER scheduling_schedule_updated
  AFTER UPDATE ON django_celery_beat_periodictask
  REFERENCING OLD TABLE AS before_update NEW TABLE AS after_update
  FOR EACH STATEMENT EXECUTE FUNCTION scheduling_schedule_updated();
"""

# One function for each table of rules: {table} and {column} name it, {fields} what it says.
RULE_UPDATED = """
CREATE FUNCTION scheduling_{column}_updated() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed integer[];
BEGIN
    SELECT array_agg(t.id) INTO changed
      FROM after_update n JOIN before_update o ON o.id = n.id
      JOIN django_celery_beat_periodictask t ON t.{column}_id = n.id
     WHERE ({old}) IS DISTINCT FROM ({new});
    IF changed IS NOT NULL THEN
        PERFORM scheduling_ask_for_plans(changed);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER scheduling_{column}_updated
  AFTER UPDATE ON {table}
  REFERENCING OLD TABLE AS before_update NEW TABLE AS after_update
  FOR EACH STATEMENT EXECUTE FUNCTION scheduling_{column}_updated();
"""

RULE_TABLES = {
    "crontab": (
        "django_celery_beat_crontabschedule",
        ["minute", "hour", "day_of_month", "month_of_year", "day_of_week", "timezone"],
    ),
    "interval": ("django_celery_beat_intervalschedule", ["every", "period"]),
    "clocked": ("django_celery_beat_clockedschedule", ["clocked_time"]),
    "solar": ("django_celery_beat_solarschedule", ["event", "latitude", "longitude"]),
}

HOLD_CALENDARS = """
CREATE FUNCTION scheduling_hold_calendars(calendars bigint[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM scheduling_calendar WHERE id = ANY(calendars) ORDER BY id FOR SHARE;
END $$;
"""

# Pausing and resuming change when a schedule fires, and so do its days off; the other policies are
# read when it does. A pause that begins counts from its own instant, which may be a moment ago; in a
# year that beat can read, whatever was written.
POLICY_CHANGED = """
CREATE FUNCTION scheduling_policy_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed integer[];
BEGIN
    SELECT array_agg(schedule_id) INTO changed
      FROM inserted WHERE paused_at IS NOT NULL OR calendar_id IS NOT NULL;
    IF changed IS NOT NULL THEN
        PERFORM scheduling_hold_calendars(array_agg(DISTINCT calendar_id)) FROM inserted;
        PERFORM scheduling_ask_for_plans(changed);
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION scheduling_policy_updated() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed integer[];
BEGIN
    SELECT array_agg(n.schedule_id) INTO changed
      FROM after_update n JOIN before_update o ON o.schedule_id = n.schedule_id
     WHERE (o.paused_at, o.paused_until, o.calendar_id,
            CASE WHEN o.calendar_id IS NOT NULL THEN o.excluded_day END)
           IS DISTINCT FROM
           (n.paused_at, n.paused_until, n.calendar_id,
            CASE WHEN n.calendar_id IS NOT NULL THEN n.excluded_day END);
    IF changed IS NOT NULL THEN
        PERFORM scheduling_hold_calendars(array_agg(DISTINCT calendar_id))
          FROM after_update WHERE schedule_id = ANY(changed);
        PERFORM scheduling_ask_for_plans(changed);
        UPDATE scheduling_plan p SET plan_from = GREATEST(n.paused_at, '0001-01-03Z')
          FROM after_update n JOIN before_update o ON o.schedule_id = n.schedule_id
         WHERE p.schedule_id = n.schedule_id AND n.paused_at < p.plan_from
           AND n.paused_at IS DISTINCT FROM o.paused_at
           AND (n.paused_until IS NULL OR n.paused_until > clock_timestamp());
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION scheduling_policy_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed integer[];
BEGIN
    SELECT array_agg(schedule_id) INTO changed
      FROM deleted WHERE paused_at IS NOT NULL OR calendar_id IS NOT NULL;
    IF changed IS NOT NULL THEN
        PERFORM scheduling_ask_for_plans(changed);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER scheduling_policy_inserted
  AFTER INSERT ON scheduling_policy REFERENCING NEW TABLE AS inserted
  FOR EACH STATEMENT EXECUTE FUNCTION scheduling_policy_inserted();
CREATE TRIGGER scheduling_policy_updated
  AFTER UPDATE ON scheduling_policy
  REFERENCING OLD TABLE AS before_update NEW TABLE AS after_update
  FOR EACH STATEMENT EXECUTE FUNCTION scheduling_policy_updated();
CREATE TRIGGER scheduling_policy_deleted
  AFTER DELETE ON scheduling_policy REFERENCING OLD TABLE AS deleted
  FOR EACH STATEMENT EXECUTE FUNCTION scheduling_policy_deleted();
"""

# A version is never given twice, not even after a rollback: who has read one need not read again.
CALENDAR_CHANGED = """
CREATE SEQUENCE scheduling_calendar_version;

CREATE FUNCTION scheduling_calendar_changing() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.name, OLD.weekdays, OLD.country, OLD.subdivision, OLD.version) IS DISTINCT FROM
       (NEW.name, NEW.weekdays, NEW.country, NEW.subdivision, NEW.version) THEN
        NEW.version := nextval('scheduling_calendar_version');
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION scheduling_calendar_changed() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed integer[];
BEGIN
    SELECT array_agg(y.schedule_id) INTO changed
      FROM after_update n JOIN before_update o ON o.id = n.id
      JOIN scheduling_policy y ON y.calendar_id = n.id
     WHERE o.version <> n.version;
    IF changed IS NOT NULL THEN
        PERFORM scheduling_ask_for_plans(changed);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER scheduling_calendar_changing
  BEFORE UPDATE ON scheduling_calendar
  FOR EACH ROW EXECUTE FUNCTION scheduling_calendar_changing();
CREATE TRIGGER scheduling_calendar_changed
  AFTER UPDATE ON scheduling_calendar
  REFERENCING OLD TABLE AS before_update NEW TABLE AS after_update
  FOR EACH STATEMENT EXECUTE FUNCTION scheduling_calendar_changed();
"""

# Dates change their calendar, whose own trigger does the rest.
DATES_CHANGED = """
CREATE FUNCTION scheduling_touch_calendars(calendars bigint[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM scheduling_calendar WHERE id = ANY(calendars)
      ORDER BY id FOR NO KEY UPDATE;
    UPDATE scheduling_calendar SET version = version + 1 WHERE id = ANY(calendars);
END $$;

CREATE FUNCTION scheduling_dates_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM scheduling_touch_calendars(array_agg(DISTINCT calendar_id)) FROM inserted;
    RETURN NULL;
END $$;

CREATE FUNCTION scheduling_dates_updated() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed bigint[];
BEGIN
    SELECT array_agg(o.calendar_id) || array_agg(n.calendar_id) INTO changed
      FROM after_update n JOIN before_update o ON o.id = n.id
     WHERE (o.calendar_id, o.date, o.reason) IS DISTINCT FROM (n.calendar_id, n.date, n.reason);
    IF changed IS NOT NULL THEN
        PERFORM scheduling_touch_calendars(changed);
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION scheduling_dates_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM scheduling_touch_calendars(array_agg(DISTINCT calendar_id)) FROM deleted;
    RETURN NULL;
END $$;

CREATE TRIGGER scheduling_dates_inserted
  AFTER INSERT ON scheduling_excludeddate REFERENCING NEW TABLE AS inserted
  FOR EACH STATEMENT EXECUTE FUNCTION scheduling_dates_inserted();
CREATE TRIGGER scheduling_dates_updated
  AFTER UPDATE ON scheduling_excludeddate
  REFERENCING OLD TABLE AS before_update NEW TABLE AS after_update
  FOR EACH STATEMENT EXECUTE FUNCTION scheduling_dates_updated();
CREATE TRIGGER scheduling_dates_deleted
  AFTER DELETE ON scheduling_excludeddate REFERENCING OLD TABLE AS deleted
  FOR EACH STATEMENT EXECUTE FUNCTION scheduling_dates_deleted();
"""

CASCADE = """
ALTER TABLE scheduling_{table} ADD CONSTRAINT scheduling_{table}_schedule
  FOREIGN KEY (schedule_id) REFERENCES django_celery_beat_periodictask (id) ON DELETE CASCADE;
"""

CASCADE_DATES = """
ALTER TABLE scheduling_excludeddate ADD CONSTRAINT scheduling_excludeddate_calendar
  FOREIGN KEY (calendar_id) REFERENCES scheduling_calendar (id) ON DELETE CASCADE;
"""

# Plans and runs are updated all the time: room for the new versions beside the old ones, and a
# vacuum long before a fifth of a large table is dead.
UPKEEP = """
ALTER TABLE scheduling_plan SET (fillfactor = 70,
  autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
  autovacuum_analyze_scale_factor = 0.05);
ALTER TABLE scheduling_run SET (fillfactor = 85,
  autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
  autovacuum_analyze_scale_factor = 0.05);
ALTER TABLE scheduling_failure SET (
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
"""

ADOPT_EXISTING = """
INSERT INTO scheduling_plan (schedule_id, needs_plan, plan_from)
  SELECT id, true, clock_timestamp() FROM django_celery_beat_periodictask ON CONFLICT DO NOTHING;
"""


def rule_updated(column: str, table: str, fields: list[str]) -> str:
    old, new = (", ".join(f"{side}.{field}" for field in fields) for side in "on")
    return RULE_UPDATED.format(column=column, table=table, old=old, new=new)


def drop(function: str, table: str) -> str:
    return f"DROP TRIGGER {function} ON {table}; DROP FUNCTION {function}();"


def drop_all(prefix: str, table: str, actions: Sequence[str]) -> str:
    return " ".join(drop(f"scheduling_{prefix}_{action}", table) for action in actions)


ROW_ACTIONS = ("inserted", "updated", "deleted")
SCHEDULES = "django_celery_beat_periodictask"


class Migration(migrations.Migration):
    dependencies = (
        ("scheduling", "0001_initial"),
        ("django_celery_beat", "0019_alter_periodictasks_options"),
    )

    operations = (
        migrations.RunSQL(
            ASK_FOR_PLANS, "DROP FUNCTION scheduling_ask_for_plans(schedule_ids integer[])"
        ),
        migrations.RunSQL(
            HOLD_RULES,
            "DROP FUNCTION scheduling_hold_rules(integer[], integer[], integer[], integer[])",
        ),
        migrations.RunSQL(SCHEDULE_INSERTED, drop("scheduling_schedule_inserted", SCHEDULES)),
        migrations.RunSQL(SCHEDULE_UPDATED, drop("scheduling_schedule_updated", SCHEDULES)),
        *(
            migrations.RunSQL(
                rule_updated(column, table, fields), drop(f"scheduling_{column}_updated", table)
            )
            for column, (table, fields) in RULE_TABLES.items()
        ),
        migrations.RunSQL(
            HOLD_CALENDARS, "DROP FUNCTION scheduling_hold_calendars(calendars bigint[])"
        ),
        migrations.RunSQL(POLICY_CHANGED, drop_all("policy", "scheduling_policy", ROW_ACTIONS)),
        migrations.RunSQL(
            CALENDAR_CHANGED,
            drop_all("calendar", "scheduling_calendar", ("changing", "changed"))
            + "DROP SEQUENCE scheduling_calendar_version;",
        ),
        migrations.RunSQL(
            DATES_CHANGED,
            drop_all("dates", "scheduling_excludeddate", ROW_ACTIONS)
            + "DROP FUNCTION scheduling_touch_calendars(calendars bigint[]);",
        ),
        migrations.RunSQL(
            CASCADE_DATES,
            "ALTER TABLE scheduling_excludeddate DROP CONSTRAINT scheduling_excludeddate_calendar",
        ),
        *(
            migrations.RunSQL(
                CASCADE.format(table=table),
                f"ALTER TABLE scheduling_{table} DROP CONSTRAINT scheduling_{table}_schedule",
            )
            for table in ("plan", "policy")
        ),
        migrations.RunSQL(UPKEEP, migrations.RunSQL.noop),
        migrations.RunSQL(ADOPT_EXISTING, migrations.RunSQL.noop),
    )
