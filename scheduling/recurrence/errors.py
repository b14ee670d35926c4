"""Errors in rules. Messages name the offending value and say what to do about it."""


class RecurrenceError(ValueError):
    """A rule, or an instant given to one, that cannot be used."""


class InvalidCron(RecurrenceError):
    """A cron expression outside the dialect."""


class InvalidInterval(RecurrenceError):
    """A step that is not a positive length of time."""


class InvalidSolar(RecurrenceError):
    """An unknown event, or a place that is not on Earth."""


class UnknownTimezone(RecurrenceError):
    """A name that the time zone database does not have."""


class UnknownCountry(RecurrenceError):
    """A country, or a part of one, whose public holidays are not known."""


class NaiveInstant(RecurrenceError):
    """A datetime without a time zone where an instant is needed."""


class NeverFires(RecurrenceError):
    """A rule with no occurrence within the next ten years."""


class MissingDependency(RecurrenceError):
    """A rule that needs a package which is not installed."""
