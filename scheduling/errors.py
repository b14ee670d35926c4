"""The exceptions: each message names the value and says what to do."""


class SchedulingError(Exception):
    """The request cannot be carried out; nothing was changed."""


class EnqueueError(SchedulingError):
    """A job that cannot be enqueued: unknown task, arguments that do not fit, a bad option."""


class CalendarError(SchedulingError):
    """A calendar that cannot be made, found or removed."""


class ScheduleError(SchedulingError):
    """A schedule that cannot be made or changed as asked."""


class RowLockedError(SchedulingError):
    """Another transaction has locked a row for too long; the work on the other rows is done."""


class PermanentError(Exception):
    """Raised by a job: the run ends as failed with this message, without another attempt."""


class RunCancelled(PermanentError):
    """Raised in a job whose run is cancelled while it runs: its chance to clean up."""
